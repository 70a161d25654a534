"""How far the weights moved, where, and in which way."""
