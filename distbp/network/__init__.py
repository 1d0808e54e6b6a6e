"""The mathematics of one process: layout, activations, costs, initial weights, forward and backward pass."""
