"""What the bits depend on beside the settings: found out, compared between ranks, and told."""

import pytest

from distbp.coordinator.environment import BITS, disagreement, environment


def ranks(**of_rank_1):
    first = {**environment(), "host": "node0"}
    return [first, {**first, "host": "node1", **of_rank_1}]


def test_what_is_known_of_this_process():
    found = environment()
    assert found["blas"] == "openblas" or found["blas"] != "unknown"
    assert found["blas_threads"] > 0
    assert set(BITS) < set(found)


def test_ranks_of_one_kind_agree_whatever_their_python():
    assert disagreement(ranks(python="3.99")) == ""


@pytest.mark.parametrize(
    ("key", "action"),
    [
        ("distbp", "Install the same on all hosts."),
        ("numpy", "Install the same on all hosts."),
        ("blas_kernel", "Set OPENBLAS_CORETYPE for all to one that all have, or use hosts of one kind."),
        ("simd", "Set NPY_DISABLE_CPU_FEATURES for all to what some lack, or use hosts of one kind."),
    ],
)
def test_ranks_that_differ_are_named(key, action):
    told = ranks(**{key: "other"})
    assert disagreement(told) == (
        f"hosts: expected one {key} on all ranks, got other on rank 1 (node1) and {told[0][key]} on rank 0 (node0): "
        f"the bits depend on it. {action}"
    )
