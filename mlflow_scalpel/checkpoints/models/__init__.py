"""Checkpoints as models in memory: opened, swapped, merged, restored."""
