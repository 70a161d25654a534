"""How far heads attend elsewhere than the base's do.

Functions take the attention rows of base and checkpoint over one text, (H, T, T) each: row t holds
the weights that position t gives to positions 0 to t, and zeros after them. They give the mean over
the T rows for each head, (H,) float64.
"""
