"""The MPI tests' guard: one readable report, a failure on one rank is a failure on all, and a stuck rank ends the job.

Rank 0 prints the report; the others write theirs to report-rankN.txt beside it only if they fail. After each test the
ranks compare outcomes, so that all go on in step and rank 0 shows the failing rank's traceback. A rank that is stuck in
a collective cannot be interrupted: a thread dumps its stack and aborts the job.
"""

from __future__ import annotations

import faulthandler
import io
import os
import sys
import threading
import time
from collections.abc import Generator

import pytest

from distbp.parallel.world import World, open_world

LIMIT = float(os.environ.get("DISTBP_TEST_LIMIT", "60"))  # seconds for one test

_world = open_world()
_control = World(_world.comm.Dup() if _world.comm else None)


@pytest.fixture
def world() -> World:
    """Return all ranks of this pytest job; or the one process there is."""
    return _world


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    if _world.rank:
        terminal = session.config.pluginmanager.get_plugin("terminalreporter")
        if terminal:
            terminal._tw._file = io.StringIO()


class Guard(threading.Thread):
    """Ends the job when one test takes longer than LIMIT on this rank."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.test, self.since = "", 0.0

    def run(self) -> None:
        while True:
            time.sleep(0.5)
            if self.test and time.monotonic() - self.since > LIMIT:
                print(f"\n[rank {_world.rank}] stuck for {LIMIT:g} s in {self.test}", file=sys.__stderr__)
                faulthandler.dump_traceback(file=sys.__stderr__)
                if _world.comm:
                    _world.comm.Abort(70)
                os._exit(70)


_guard = Guard()
_guard.start()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    _guard.since, _guard.test = time.monotonic(), item.nodeid
    result = yield
    _guard.test = ""
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and _world.size > 1:
        text = report.longreprtext if report.failed else ""
        if text:  # said at once: the exchange below never returns if a peer is stuck
            print(f"\n[rank {_world.rank}] {item.nodeid}\n{text}", file=sys.__stderr__, flush=True)
        texts = _control.exchange(text)
        failed = [(rank, t) for rank, t in enumerate(texts) if t]
        if failed and not report.failed:
            report.outcome = "failed"
            report.longrepr = "\n".join(f"failed on rank {rank}:\n{t}" for rank, t in failed)
    return report
