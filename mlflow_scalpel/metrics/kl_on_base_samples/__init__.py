"""Divergence on answers that the base wrote itself."""
