"""docs/running.md: its commands for one host, as they stand there; and none of its commands is without a test."""

import re
import sys
from pathlib import Path

import pytest
from commands import RUNNING, Process, commands_of, documented, mpirun

TESTS = Path(__file__).parents[1]
ONE_HOST = {
    "python -m distbp.train": "model: ",
    "mpirun -n 4 python -m distbp.train": "model: ",
    "python -m distbp.launch -n 4 -- examples/notes.toml": "model: ",
    "python -m distbp.launch -n 4 --dry-run -- examples/notes.toml": "mpirun",
}
NEVER = ("kubectl ", "docker push ")  # no cluster and no registry


@pytest.mark.parametrize(("command", "says"), ONE_HOST.items())
def test_a_command_for_one_host(here, command, says):
    (here.path / "examples").symlink_to(TESTS.parent / "examples")
    line = documented(command, {"python": sys.executable})
    if line[0] == "mpirun":
        line[:3] = mpirun(4)
    here.started.append(Process(line, here.path))
    done = here.started[-1].wait()
    assert done.code == 0, done.err
    assert says in done.out.splitlines()[-1]


def test_each_command_is_run_by_a_test():
    sources = "".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    run = {*ONE_HOST, *re.findall(r'documented\(\s*"([^"]+)"', sources)}
    assert [line for line in commands_of(RUNNING.read_text()) if line not in run and not line.startswith(NEVER)] == []
