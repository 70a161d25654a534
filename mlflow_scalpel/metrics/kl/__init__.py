"""How far the output distributions moved, token by token."""
