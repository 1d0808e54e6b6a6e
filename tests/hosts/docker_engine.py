"""A Docker engine for the tests: the one that runs, or one of their own that leaves nothing behind; and a stack on it.

Where no image registry is reachable the base image is made here, from Debian's packages (debootstrap) with Debian's
Python; its files are kept in a cache folder, because making them takes most of a minute.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distbp-tests"
LIMIT = 240.0  # seconds for one run; a quiet machine needs 15
BASE = "python:3.12-slim-bookworm"  # the Dockerfile's own
SHA = re.compile(r"model\.safetensors sha256 ([0-9a-f]{64})")
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")


def run(
    *command: object,
    limit: float = 120,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    check: bool = True,
) -> str:
    """Return both outputs of a command, together; it must succeed, in time."""
    done = subprocess.run(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=limit,
        cwd=cwd, env={**os.environ, **(env or {})}, check=False,
    )  # fmt: skip
    assert done.returncode == 0 or not check, f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}"
    return done.stdout.strip()


@contextlib.contextmanager
def engine() -> Iterator[dict[str, str]]:
    """Yield the variables by which docker, and docker-compose.yml, use an engine that has the base image."""
    if not shutil.which("docker"):
        pytest.skip("no docker: on Debian, apt install docker.io")
    answer = subprocess.run(["docker", "info"], capture_output=True, timeout=60, check=False)
    if answer.returncode == 0 and _pulled():
        yield {}
        return
    if os.geteuid() != 0:
        pytest.skip("no Docker engine with an image registry answers, and only root can start one")
    missing = [name for name in ("dockerd", "debootstrap", "setpriv") if not shutil.which(name)]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)}: on Debian, apt install docker.io debootstrap")
    if answer.returncode == 0:
        yield {**_base({}), "DISTBP_BUILD_NETWORK": "host"}
        return
    with _own_engine() as host:
        yield {"DOCKER_HOST": host, "DISTBP_BUILD_NETWORK": "host", **_base({"DOCKER_HOST": host})}


def _pulled() -> bool:
    """Return whether the base image is there, or comes from a registry."""
    with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
        if run("docker", "images", "-q", BASE) or run("docker", "pull", "-q", BASE):
            return True
    return False


@contextlib.contextmanager
def _own_engine() -> Iterator[str]:
    """Yield the address of an engine that needs no firewall rules and no bridge of the machine's own."""
    place = Path(tempfile.mkdtemp(prefix="distbp-docker-", dir="/var/tmp"))
    socket = f"unix://{place}/socket"
    command: list[object] = [
        "setpriv",
        "--pdeathsig",
        "TERM",
    ]  # if the tests are killed, the engine ends, and all it runs
    command += [
        "dockerd",
        "--data-root",
        place / "data",
        "--exec-root",
        place / "exec",
        "-H",
        socket,
        "-p",
        place / "pid",
    ]
    command += ["--iptables=false", "--ip-masq=false", "--ip-forward=false", "--bridge=none"]
    log = place / "log"
    with log.open("wb") as file:
        daemon = subprocess.Popen(list(map(str, command)), stdout=file, stderr=file, start_new_session=True)
    env = {"DOCKER_HOST": socket}
    try:
        end = time.monotonic() + 60
        while subprocess.run(
            ["docker", "info"], env={**os.environ, **env}, capture_output=True, check=False
        ).returncode:
            if daemon.poll() is not None or time.monotonic() > end:
                pytest.skip(f"no Docker engine starts here: {log.read_text().strip().splitlines()[-1:]}")
            time.sleep(0.2)
        yield socket
    finally:
        if daemon.poll() is None:
            left = run("docker", "ps", "-aq", env=env, check=False).split()
            if left:
                run("docker", "rm", "-f", *left, env=env, check=False)
            daemon.terminate()
        try:
            daemon.wait(30)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        shutil.rmtree(place, ignore_errors=True)


def _base(env: dict[str, str]) -> dict[str, str]:
    """Make the base image from Debian's packages; return the variable that names it."""
    kept = CACHE / "debian-bookworm-python.tar"
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="distbp-base-", dir="/var/tmp") as folder:
            _debian(Path(folder) / "root", kept)
    # pip in the build needs what this machine's pip needs: its certificates, and the index and proxy of its settings.
    changes = [f"ENV PIP_CERT={AUTHORITIES}"] if AUTHORITIES.exists() else []
    settings = run(sys.executable, "-m", "pip", "config", "list", check=False)
    for key in ("index-url", "trusted-host", "proxy"):
        found = re.search(rf"\.{key}='(.*)'", settings)
        changes += [f"ENV PIP_{key.upper().replace('-', '_')}={found[1]}"] if found else []
    run("docker", "import", *(word for change in changes for word in ("-c", change)), kept, "distbp-base:test", env=env)
    return {"DISTBP_BASE": "distbp-base:test"}


def _debian(root: Path, kept: Path) -> None:
    """Put a small Debian with Python into a tar file."""
    sites = run("apt-get", "indextargets", "--format", "$(SITE) $(COMPONENT)", "Created-By: Packages", check=False)
    mirrors = [
        line.split()[0] for line in sites.splitlines() if line.endswith("main") and line.split()[0].endswith("debian")
    ]
    packages = "--include=ca-certificates,python3,python3-venv"
    line = ["debootstrap", "--variant=minbase", packages, "bookworm", root, *mirrors[:1]]
    try:
        run(*line, limit=300)
    except AssertionError as error:
        pytest.skip(f"no image registry, and no Debian mirror to make a base image from: {str(error)[-200:]}")
    if AUTHORITIES.exists():
        shutil.copy(AUTHORITIES, root / AUTHORITIES.relative_to("/"))
    for folder in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"):
        shutil.rmtree(root / folder)
        (root / folder).mkdir()
    run("tar", "-C", root, "-cf", f"{kept}.new", ".")
    Path(f"{kept}.new").rename(kept)


class Stack:
    """The head and the workers of docker-compose.yml, under a project name of their own."""

    def __init__(self, env: dict[str, str], **variables: str) -> None:
        self.env = {**os.environ, **env, "COMPOSE_PROJECT_NAME": f"distbp{os.getpid()}", **variables}

    def line(self, *arguments: object) -> list[str]:
        """Return a command line of Compose."""
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=60, check=False)
        if plugin.returncode:
            pytest.skip("no Compose 2: Debian 13's docker-compose has it, for Debian 12 too (see .ci/run)")
        return ["docker", "compose", "-f", str(ROOT / "docker-compose.yml"), *map(str, arguments)]

    def compose(self, *arguments: object, limit: float = LIMIT) -> str:
        """Run a command of Compose and return what it printed."""
        return run(*self.line(*arguments), limit=limit, env=self.env)

    def docker(self, *arguments: object) -> str:
        """Run a command of docker and return what it printed."""
        return run("docker", *arguments, limit=LIMIT, env=self.env)

    def container(self, service: str, number: int = 1) -> str:
        """Return a container's name."""
        return f"{self.env['COMPOSE_PROJECT_NAME']}-{service}-{number}"

    def log(self) -> str:
        """Return what the head has written so far."""
        return self.docker("logs", self.container("head"))

    def wait_for(self, text: str) -> None:
        """Return when the head has written a text; fail if it ends before."""
        end = time.monotonic() + LIMIT
        while not re.search(text, log := self.log()):
            running = self.docker("inspect", "-f", "{{.State.Running}}", self.container("head"))
            assert running == "true", f"the head ended before {text!r}:\n{log}"
            assert time.monotonic() < end, f"no {text!r} within {LIMIT:g} s:\n{log}"
            time.sleep(0.05)

    def code(self) -> int:
        """Return the head's exit code, when it has ended."""
        return int(self.docker("wait", self.container("head")))

    def down(self) -> None:
        """End all of it, and its volumes."""
        ours = f"label=com.docker.compose.project={self.env['COMPOSE_PROJECT_NAME']}"
        for name in self.docker("ps", "-q", "--filter", "status=paused", "--filter", ours).split():
            self.docker("unpause", name)
        self.compose("down", "-v", "-t", "2")
