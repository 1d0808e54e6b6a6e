"""The only room that imports mpi4py: the world, the tree sum, agreement, the replica check."""
