"""What the launcher works out before it starts anything: hosts, who gets how many ranks, command lines, marks."""

import shlex
import stat
import subprocess
import sys

import pytest

from distbp import marks
from distbp.launching import mpi
from distbp.launching.hosts import Host, read_hosts, spread, with_slots
from distbp.launching.keeper import HERE

MPICH = mpi.Library("mpich", "MPICH 5.0.2", 5, "/mpich/mpirun")
OPEN_MPI_4 = mpi.Library("openmpi", "Open MPI 4.1.4", 4, "/ompi/mpirun")
OPEN_MPI_5 = mpi.Library("openmpi", "Open MPI 5.0.11", 5, "/ompi/mpirun")
INTEL = mpi.Library("intel", "Intel 2021.14", 2021, "/intel/mpirun")
PROGRAM = ["-m", "distbp.train", "my.toml"]


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("a:2\nb:3", [Host("a", 2), Host("b", 3)]),
        ("a", [Host("a")]),
        ("a slots=2\n\n# none, c slots=2\nb:1  # the last, d\n", [Host("a", 2), Host("b", 1)]),
        ("a slots=4 max_slots=8", [Host("a", 4)]),
        ("a\na\nb", [Host("a", 2), Host("b")]),
        ("a:2 python=/opt/x/bin/python directory=/data", [Host("a", 2, "/opt/x/bin/python", "/data")]),
        ("a python=/x/python\na", [Host("a", 2, "/x/python")]),
    ],
)
def test_hosts_are_read_in_every_form(text, hosts):
    assert read_hosts(text.splitlines(), "place") == hosts


@pytest.mark.parametrize("text", ["", "# none\n", "\n"])
def test_no_hosts_at_all(text):
    with pytest.raises(ValueError, match=r"^F: expected at least one host, got none\. Give it like node1:2,node2:2\.$"):
        read_hosts(text.splitlines(), "F")


@pytest.mark.parametrize("text", ["-oProxyCommand=x", ":3", "a b=c"])
def test_what_is_no_host_is_named(text):
    with pytest.raises(ValueError) as error:
        read_hosts(["good", text], "F")
    assert str(error.value) == (
        "F, entry 2: expected a host like node1, node1:2 or node1 slots=2 python=PATH directory=PATH, "
        f"got {text!r}. Mend that entry."
    )


@pytest.mark.parametrize(
    ("ranks", "slots", "counts"),
    [
        (4, [2, 2], [2, 2]),
        (3, [2, 2], [2, 1]),
        (4, [4, 4], [2, 2]),
        (5, [1, 8], [1, 4]),
        (9, [2, 2], [2, 2]),
        (1, [4, 4], [1, 0]),
    ],
)
def test_ranks_are_spread_evenly(ranks, slots, counts):
    hosts = [Host(f"h{i}", n) for i, n in enumerate(slots)]
    assert [spread(ranks, hosts).get(host, 0) for host in hosts] == counts


def test_hosts_without_slots_take_their_even_part():
    assert [host.slots for host in with_slots([Host("a"), Host("b"), Host("c", 5)], 7)] == [3, 3, 5]


def line(library, counts, ssh="", variables=None):
    command = mpi.on_hosts(library, counts, ssh, PROGRAM, variables or {})
    return shlex.join(command).replace(sys.executable, "PY")


def test_command_lines_of_this_machine():
    rest = "-n 3 PY -m distbp.train my.toml"
    assert line(MPICH, {HERE: 3}) == f"/mpich/mpirun -prepend-rank {rest}"
    assert line(INTEL, {HERE: 3}) == f"/intel/mpirun -prepend-rank {rest}"
    common = "/ompi/mpirun --bind-to none --mca mpi_yield_when_idle 1"
    assert line(OPEN_MPI_5, {HERE: 3}) == f"{common} --output tag --map-by slot:OVERSUBSCRIBE {rest}"
    assert line(OPEN_MPI_4, {HERE: 3}) == f"{common} --tag-output --map-by slot --oversubscribe {rest}"


def test_command_lines_of_hosts():
    counts = {Host("a", 2): 2, Host("b", 2): 1}
    assert line(MPICH, counts, "/x/ssh") == (
        "/mpich/mpirun -prepend-rank -launcher ssh -launcher-exec /x/ssh -hosts a:2,b:1 -n 3 PY -m distbp.train my.toml"
    )
    assert line(OPEN_MPI_5, counts, "/x/ssh", {"PATH": "p", "HOME": "h", "OPENBLAS_CORETYPE": "c"}).endswith(
        "--prtemca plm_ssh_no_tree_spawn 1 --prtemca plm_ssh_agent /x/ssh -n 3 --host a:2,b:1 -x PATH -x OPENBLAS_CORETYPE PY -m distbp.train my.toml"
    )
    assert "--mca plm_rsh_no_tree_spawn 1 --mca plm_rsh_agent /x/ssh -n 3" in line(OPEN_MPI_4, counts, "/x/ssh")
    assert line(INTEL, counts) == (  # its -hosts takes no numbers of ranks
        "/intel/mpirun -prepend-rank -launcher ssh -host a -n 2 PY -m distbp.train my.toml "
        ": -host b -n 1 PY -m distbp.train my.toml"
    )


def test_hosts_with_paths_of_their_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    counts = {Host("a", 1): 1, Host("b", 2, "/b/python", "/d"): 2}
    for library, wdir in ((MPICH, "-wdir"), (OPEN_MPI_5, "--wdir")):
        words = mpi.on_hosts(library, counts, "", PROGRAM, {})
        assert words[words.index(wdir) :] == [
            wdir, "/", "sh", "-c",
            f'case ${{PMI_RANK:-$OMPI_COMM_WORLD_RANK}} in 0) cd {tmp_path} && exec {sys.executable} "$@" ;; '
            '1|2) cd /d && exec /b/python "$@" ;; esac',
            "rank", *PROGRAM,
        ]  # fmt: skip


def test_the_agent_finds_programs_where_a_host_has_them(tmp_path):
    (tmp_path / "ssh").write_text('#!/bin/sh\nfor word; do echo "[$word]"; done\n')
    script = tmp_path / "agent"
    script.write_text(mpi.agent(str(tmp_path / "ssh"), [Host("a"), Host("b", 1, "/opt/there/bin/python")]))
    for path in (script, tmp_path / "ssh"):
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    bin_here = sys.executable.rpartition("/")[0]
    for host, there in (("a", bin_here), ("b", "/opt/there/bin")):
        done = subprocess.run(
            [script, "-x", host, f'"{bin_here}/hydra_pmi_proxy" --port 1'], capture_output=True, text=True, check=True
        )
        assert done.stdout == f'[-x]\n[{host}]\n["{there}/hydra_pmi_proxy" --port 1]\n'


@pytest.mark.parametrize(
    ("starter", "text", "rank"),
    [
        ("mpich", "[12] hello", "12"),
        ("intel", "[0] hello", "0"),
        ("openmpi", "[1,3]<stdout>: hello", "3"),
        ("openmpi", "[prterun-host-1@1,0]<stderr>: hello", "0"),
        ("srun", " 7: hello", "7"),
    ],
)
def test_the_rank_before_a_line(starter, text, rank):
    tag = mpi.RANK[starter].match(text)
    assert tag
    assert (tag[1], text[tag.end() :]) == (rank, "hello")


def test_mpirun_is_the_librarys_own_before_that_beside_python(tmp_path):
    """A wheel's mpirun lies beside Python, whichever library MPI4PY_MPIABI made mpi4py load."""
    for name in ("bin", "lib"):
        (tmp_path / name).mkdir()
    (tmp_path / "lib" / "libmpi.so.40").touch()
    mpirun = tmp_path / "bin" / "mpirun"
    mpirun.write_text("#!/bin/sh\necho 'mpirun (Open MPI) 4.1.4'\n")
    mpirun.chmod(0o700)
    found = {"library": "Open MPI v4.1.4, package: Debian", "file": str(tmp_path / "lib" / "libmpi.so.40")}
    assert mpi.library_of(found) == mpi.Library("openmpi", "Open MPI 4.1.4", 4, str(mpirun))


@pytest.mark.parametrize("found", ["LAM/MPI 7.1", ""])
def test_a_library_that_is_not_known(found):
    with pytest.raises(
        ValueError, match=r"^mpi4py: expected MPICH, Open MPI or Intel MPI, got '.*'\. Start the ranks "
    ):
        mpi.library_of({"library": found, "file": ""})


def test_a_library_without_its_mpirun(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError) as error:
        mpi.library_of({"library": "Intel(R) MPI Library 2021.14 for Linux* OS", "file": "/nowhere/lib/libmpi.so"})
    assert str(error.value) == (
        "mpirun: expected that of Intel 2021.14, which mpi4py loads, beside the library, beside Python or in PATH, "
        "got none. Install it, or put it in PATH."
    )


def test_marks_are_read_only_with_their_key(monkeypatch, capsys):
    marks.mark(step=1)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv(marks.VARIABLE, "abc")
    marks.mark(step=1)
    written = capsys.readouterr().err
    assert marks.read(written, "abc") == ("", {"step": 1})
    assert marks.read(f"half a line[0] {written}", "abc") == ("half a line[0] \n", {"step": 1})
    for line in (written, "step 1\n", "\x1edistbp other {torn\n"):
        assert marks.read(line, "other") == (line, None)
