"""How far each matrix moved from the base: sums over its elements."""
