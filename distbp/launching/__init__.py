"""Starting a run under MPI on one or many hosts, and keeping it going."""
