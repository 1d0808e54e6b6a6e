"""docker-compose.yml and its image, for real: a head and three workers, and what happens when one of them is lost."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import Process, documented, wait_for
from docker_engine import LIMIT, ROOT, SHA, Stack, run

pytestmark = pytest.mark.docker

SETTINGS = Path(__file__).with_name("everywhere.toml")
STEPS = ["--training.epochs", "120"]
TRAINING = r"epoch +\d+ "  # the head says so after the first epochs


@pytest.fixture(scope="module")
def env(image: dict[str, str]) -> dict[str, str]:
    """Return the variables of a stack that trains for some seconds."""
    return {**image, "DISTBP_SETTINGS": str(SETTINGS), "DISTBP_ARGS": " ".join(STEPS)}


@pytest.fixture
def stack_with(env: dict[str, str]) -> Iterator[Callable[..., Stack]]:
    """Return a function from further variables to a stack; afterwards it is gone."""
    made: list[Stack] = []

    def make(**variables: str) -> Stack:
        made.append(Stack(env, **variables))
        return made[-1]

    yield make
    for stack in made:
        stack.down()


@pytest.fixture
def stack(stack_with: Callable[..., Stack]) -> Stack:
    """Return a stack; afterwards it is gone."""
    return stack_with()


@pytest.fixture(scope="module")
def one_process(env: dict[str, str]) -> str:
    """Return the SHA-256 that one process gives, without MPI, in the same image."""
    text = run(
        "docker", "run", "--rm", "--network", "none", "-e", "OPENBLAS_CORETYPE", "-v", f"{env['DISTBP_SETTINGS']}:/my.toml:ro", "distbp:mpich",
        "python", "-m", "distbp.train", "/my.toml", "--runs", "/runs", *STEPS, env=env,
    )  # fmt: skip
    return SHA.findall(text)[-1]


def test_a_worker_that_is_killed_is_done_without(stack: Stack, one_process: str) -> None:
    """Under the command with which Compose ends with the head, and would end all with a worker it is attached to."""
    up = documented("docker compose up --scale worker=3 --exit-code-from head")
    running = Process(stack.line(*up[2:]), ROOT, stack.env)
    try:
        head, lost = stack.container("head"), stack.container("worker", 2)
        wait_for(lambda: stack.docker("ps", "-q", "--filter", f"name={head}"), "the head", LIMIT)
        stack.wait_for(TRAINING)
        stack.docker("kill", lost)
        assert running.wait(LIMIT).code == 0, stack.log()
    finally:
        running.end()
    log = stack.log()
    assert f"without {lost}: " in log, log
    assert "3 ranks on 3 hosts" in log, log
    assert "resumed after step" in log, log
    assert SHA.findall(log) == [one_process]


def test_a_worker_that_is_cut_off_is_done_without(stack: Stack, one_process: str) -> None:
    stack.compose("up", "-d")
    stack.wait_for(TRAINING)
    lost = stack.container("worker", 2)
    stack.docker("network", "disconnect", f"{stack.env['COMPOSE_PROJECT_NAME']}_private", lost)
    assert stack.code() == 0, stack.log()
    log = stack.log()
    assert f"{lost} no longer answers" in log or f"without {lost}: " in log, log
    assert "3 ranks on 3 hosts" in log, log
    assert SHA.findall(log) == [one_process]


def test_a_worker_that_is_paused_is_waited_for(stack: Stack, one_process: str) -> None:
    stack.compose("up", "-d")
    stack.wait_for(TRAINING)
    stack.docker("pause", stack.container("worker", 2))
    time.sleep(12)  # longer than the launcher waits for a host whose kernel does not answer
    before = stack.log()
    time.sleep(2)
    assert stack.log() == before, "the run went on without a worker that was only paused"
    stack.docker("unpause", stack.container("worker", 2))
    assert stack.code() == 0, stack.log()
    log = stack.log()
    assert "Restart" not in log, log
    assert SHA.findall(log) == [one_process]


def test_a_stack_that_is_stopped_goes_on_when_it_is_up_again(stack: Stack, one_process: str) -> None:
    stack.compose("up", "-d")
    stack.wait_for(TRAINING)
    stack.compose(*documented("docker compose stop")[2:])
    assert stack.docker("inspect", "-f", "{{.State.ExitCode}}", stack.container("head")) == "75", stack.log()
    stack.compose("up", "-d")
    assert stack.code() == 0, stack.log()
    log = stack.log()
    assert "the run run is there: going on with it" in log, log
    assert "resumed after step" in log, log
    assert SHA.findall(log) == [one_process]


def test_a_worker_that_is_back_takes_part_again(stack_with: Callable[..., Stack], one_process: str) -> None:
    stack = stack_with(DISTBP_LAUNCH_ARGS="--min-ranks 4")
    stack.compose("up", "-d")
    stack.wait_for(TRAINING)
    lost = stack.container("worker", 2)
    stack.docker("kill", lost)
    stack.wait_for(r"expected at least 4 ranks \(--min-ranks\)")
    stack.docker("start", lost)
    assert stack.code() == 0, stack.log()
    log = stack.log()
    assert log.count("4 ranks on 4 hosts") == 2, log
    assert SHA.findall(log) == [one_process]


def test_two_ranks_in_each_container(stack_with: Callable[..., Stack], one_process: str) -> None:
    stack = stack_with(DISTBP_WORKERS="1", DISTBP_RANKS_PER_HOST="2")
    stack.compose("up", "-d")
    assert stack.code() == 0, stack.log()
    log = stack.log()
    assert "4 ranks on 2 hosts" in log, log
    assert SHA.findall(log) == [one_process]


def test_a_worker_that_is_missing_is_named(stack_with: Callable[..., Stack]) -> None:
    stack = stack_with(DISTBP_WAIT="3")
    stack.compose("up", "-d", "--scale", "worker=2")
    assert stack.code() == 2
    name = re.sub("1$", "3", stack.container("worker", 1))
    assert stack.log() == (
        f"head: expected 3 workers within 3 s, got 2: no {name}. Start as many as DISTBP_WORKERS says "
        "(docker compose up --scale worker=3), or change it."
    )


def test_a_settings_file_that_is_not_there_is_an_error(stack_with: Callable[..., Stack]) -> None:
    stack = stack_with(DISTBP_SETTINGS="./none.toml")
    done = subprocess.run(
        stack.line("up", "-d"), env=stack.env, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode != 0
    assert "none.toml" in done.stderr
    assert not (ROOT / "none.toml").exists()


def test_the_image_is_small_plain_and_has_no_key(stack: Stack) -> None:
    size, user, labels, health = stack.docker(
        "image",
        "inspect",
        "-f",
        "{{.Size}}\n{{.Config.User}}\n{{.Config.Labels}}\n{{.Config.Healthcheck}}",
        "distbp:mpich",
    ).splitlines()
    assert int(size) < 450e6
    assert user == "distbp"
    assert "org.opencontainers.image.title:distbp" in labels
    assert "distbp-start health" in health
    look = (
        "id -u; for p in gcc cc g++ c++ clang ld as; do command -v $p; done;"
        "find / -xdev \\( -name 'ssh_host_*' -o -name '*_key' -o -name 'id_*' \\) -type f -not -path '/proc/*' 2>/dev/null;"
        "find /keys /runs /data -mindepth 1; pip list --format freeze"
    )
    first, *rest = stack.docker("run", "--rm", "--network", "none", "distbp:mpich", "bash", "-c", look).splitlines()
    assert first == "1000"
    installed = {line.lower() for line in rest if not line.startswith(("distbp==", "pip==", "[notice]"))}
    pinned = {line.lower() for line in (ROOT / "launch" / "docker" / "constraints.txt").read_text().splitlines()}
    assert installed
    assert installed <= pinned, "a compiler, a key, or a package that is not pinned"


def test_a_worker_lets_nobody_in_but_by_its_key(stack: Stack) -> None:
    stack.compose("up", "-d", "worker")
    worker = stack.container("worker", 1)
    end = time.monotonic() + LIMIT
    while stack.docker("inspect", "-f", "{{.State.Health.Status}}", worker) != "healthy":
        assert time.monotonic() < end, stack.docker("logs", worker)
        time.sleep(0.2)
    said = stack.docker("exec", worker, "/usr/sbin/sshd", "-T", "-f", "/etc/distbp/sshd_config").splitlines()
    for line in ("permitrootlogin no", "passwordauthentication no", "authenticationmethods publickey", "port 2222"):
        assert line in said
    script = "ssh -o BatchMode=yes -F none -p 2222 -o StrictHostKeyChecking=no localhost true 2>&1 || true"
    assert "Permission denied (publickey)" in stack.docker("exec", worker, "bash", "-c", script)


def test_the_image_is_built_for_a_registry(env: dict[str, str]) -> None:
    if not env.get("DISTBP_BASE"):
        pytest.skip("with the Dockerfile's own base there is nothing to add to the command")
    line = documented("docker build -f launch/docker/Dockerfile -t registry.example.org/distbp:0.1.0 .")
    run(*line, f"--build-arg=BASE={env['DISTBP_BASE']}", "--network=host", limit=400, cwd=ROOT, env=env)
    run("docker", "rmi", line[-2], env=env)


def test_the_tests_pass_in_the_image(stack: Stack) -> None:
    """A few of them, for time; without more words the same command passes all."""
    stack.compose("build", "test", limit=400)
    command = documented("docker compose run --rm test")[2:]
    for words in ("unit -q -k tree", "mpi -q -k tree"):
        assert "all tests passed" in stack.compose(*command, "launch/test.sh", *words.split())


def test_the_image_takes_pinned_versions_only() -> None:
    text = (ROOT / "launch" / "docker" / "Dockerfile").read_text().replace("\\\n", " ")
    installs = [line for line in text.splitlines() if "pip install" in line]
    assert installs
    for line in installs:
        assert "--constraint /src/launch/docker/constraints.txt" in line
        assert "--only-binary :all:" in line
    lines = (ROOT / "launch" / "docker" / "constraints.txt").read_text().splitlines()
    for line in lines[1:]:
        assert re.fullmatch(r"[\w.-]+==[\w.]+", line), line
