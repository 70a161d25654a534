"""How many directions an update has, and what it does to the singular values."""
