"""The loop: the problem, the step, evaluation, when to stop, the run."""
