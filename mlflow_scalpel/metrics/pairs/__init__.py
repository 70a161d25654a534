"""How alike the updates of two checkpoints from one base are."""
