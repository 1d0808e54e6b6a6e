"""eta of a step: a pure function of the step number, so a resumed run has it for free.

    constant   eta
    step       eta * step_factor ^ floor(epoch / step_epochs)
    cosine     eta * (1 + cos(pi t / T)) / 2,  t = 0 ... T - 1 after the warm-up
    warm-up    the first w steps have eta * (step + 1) / w in place of it

References
----------
I. Loshchilov, F. Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017, equation 5.
"""

from __future__ import annotations

import math

from distbp.settings import Descent


def learning_rate(descent: Descent, step: int, steps_per_epoch: int, last_step: int) -> float:
    """Return eta of the step that leads from `step` to `step` + 1; `last_step` is where the run ends (0: unknown)."""
    eta = descent.learning_rate
    if step < descent.warmup_steps:
        return eta * (step + 1) / descent.warmup_steps
    if descent.schedule == "step":
        return eta * float(descent.step_factor ** (step // steps_per_epoch // descent.step_epochs))
    if descent.schedule == "cosine":
        t, length = step - descent.warmup_steps, max(1, last_step - descent.warmup_steps)
        return eta * (1 + math.cos(math.pi * min(t / length, 1.0))) / 2
    return eta
