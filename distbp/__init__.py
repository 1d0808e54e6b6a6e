"""distbp: data-parallel training of fully connected networks by back propagation, over MPI.

The command is ``python -m distbp.train``, alone or under ``mpirun``; the same from Python is in `distbp.api`.
Importing this package imports nothing else: no numpy, no MPI.
"""

__version__ = "0.1.0"
