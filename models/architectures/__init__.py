"""One file an architecture: what its config means and how its tensors are named."""
