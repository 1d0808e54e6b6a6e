"""Ten steps of every rule with every cost: the numbers of an earlier version, to 1e-9 (BLAS kernels differ)."""

from __future__ import annotations

import json

import numpy as np
import pytest
from golden.cases import ACTIVATIONS, CASES, COSTS, RULES
from golden.make_steps import PATH, summary

GOLDEN = json.loads(PATH.read_text())


def test_the_file_holds_every_case():
    assert list(GOLDEN) == [case.name for case in CASES]
    assert len(GOLDEN) == len(CASES)
    assert {(case.rule, case.cost) for case in CASES} == {(rule, cost) for rule in RULES for cost in COSTS}
    assert {name for case in CASES for name in case.activations[:-1]} == set(ACTIVATIONS)
    assert {case.activations[-1] for case in CASES if case.cost in ("quadratic", "absolute", "huber")} == set(
        ACTIVATIONS
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_steps_are_those_of_the_file(case):
    found, golden = summary(case), GOLDEN[case.name]
    np.testing.assert_allclose(found["costs"], golden["costs"], rtol=1e-9)
    np.testing.assert_allclose(found["norms"], golden["norms"], rtol=1e-9)
    np.testing.assert_allclose(
        found["sampled"], golden["sampled"], rtol=1e-9, atol=1e-9 * np.max(np.abs(golden["sampled"]))
    )
    np.testing.assert_allclose(found["sums"], golden["sums"], rtol=1e-9, atol=1e-9 * golden["sums"][1])
