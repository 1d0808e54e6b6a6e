"""Fixtures of the system tests: a place to run commands in, and what an unbroken run gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import Place, places


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    """Return an empty working folder to run commands in."""
    yield from places(tmp_path)


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, str]]:
    """Return a function from arguments and a number of steps to the hashes that one unbroken process gives."""
    known: dict[tuple[object, ...], dict[str, str]] = {}

    def hashes(arguments: tuple[str, ...], steps: int) -> dict[str, str]:
        key = (*arguments, steps)
        if key not in known:
            for place in places(tmp_path_factory.mktemp("unbroken")):
                done = place.run(*arguments, *ends_at(steps), "--name", "unbroken", "--quiet")
                assert done.code == 0, done.err
                known[key] = place.hashes("unbroken")
        return known[key]

    return hashes


def ends_at(steps: int) -> tuple[str, ...]:
    """Return the options that end a run after so many steps."""
    return ("--training.epochs", "0", "--training.steps", str(steps))


@pytest.fixture
def goes_on(here: Place, unbroken: Callable[..., dict[str, str]]) -> Callable[..., None]:
    """Return a function that resumes a run to some steps beyond its last checkpoint, and compares the bytes.

    The unbroken run is started with `arguments`, as the broken one was.
    """

    def check(name: str, arguments: tuple[str, ...], ranks: int | None = None, more: int = 23) -> None:
        steps = here.last_step(name) + more
        done = here.run("--resume", name, *ends_at(steps), ranks=ranks)
        assert done.code == 0, done.err
        assert done.out.count("resumed after step") == (1 if steps > more else 0)
        assert here.hashes(name) == unbroken(arguments, steps)
        assert here.leftovers(name) == []

    return check
