"""What the pods of launch/kubernetes run, run for real without a cluster (pods.sh): a launcher and a worker.

Their user, rights, sshd, keys, host file and variables are those of the manifests and of the operator. The worker is
stopped as a drained node's: its preStop line runs in it. The next launcher pod goes on, to the bits of an unbroken run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from commands import Place

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: pip install 'distbp[test]'")

ROOT = Path(__file__).parents[2]
BASE = ROOT / "launch" / "kubernetes" / "base"
NEEDED = ("unshare", "nsenter", "setpriv", "ip", "pgrep", "/usr/sbin/sshd")
NAME = "distbp-worker-0.distbp-worker.default.svc"
EPOCHS = 1000  # seconds even on a fast machine, so that it can be stopped on its way


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Return a folder with what the manifests give the pods, and with a longer run."""
    job = yaml.safe_load((BASE / "mpijob.yaml").read_text())
    launcher, worker = (
        job["spec"]["mpiReplicaSpecs"][role]["template"]["spec"]["containers"][0] for role in ("Launcher", "Worker")
    )
    assert worker["command"] == ["/usr/sbin/sshd", "-D", "-e", "-f", "/etc/distbp/sshd_config"]
    files: dict[str, Any] = {
        "launch": launcher["args"][0],
        "stop": worker["lifecycle"]["preStop"]["exec"]["command"][2],
        **{name: (BASE / name).read_text() for name in ("sshd_config", "ssh_config")},
        "settings.toml": re.sub("epochs = .*", f"epochs = {EPOCHS}", (BASE / "settings.toml").read_text()),
    }
    folder = tmp_path / "parts"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.hosts
def test_a_stopped_worker_saves_and_the_next_launcher_goes_on(python: str, parts: Path, here: Place) -> None:
    missing = [name for name in NEEDED if not shutil.which(name)]
    if os.geteuid() != 0:
        pytest.skip("needs root, to make namespaces")
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: Debian's iproute2, openssh-server, procps and util-linux")
    mpi = subprocess.run(
        [python, "-c", "from mpi4py import MPI; print(MPI.Get_library_version()[:4])"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    line = f"{NAME} slots=2" if mpi.startswith("Open") else f"{NAME}:2"  # as the operator writes it for each
    apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--net", "--ipc", "--mount-proc"]
    script = Path(__file__).with_name("pods.sh")
    done = subprocess.run(
        [*apart, "bash", str(script), python, str(ROOT), str(parts), line],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        start_new_session=True,  # no signal of theirs reaches these tests
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "first launcher: 75" in done.stdout
    assert "resumed after step" in done.stdout
    assert "second launcher: 0" in done.stdout
    alone = here.run(str(parts / "settings.toml"), "--name", "alone", "--quiet")
    assert alone.code == 0, alone.err
    assert here.hashes("alone")["model.safetensors"] in done.stdout
