"""Rank 0's work: checkpoints, journal, progress, the run's folder. It never communicates."""
