"""How far the output distribution and the attention moved."""
