"""The way out: from what a user calls a model to its files on this machine, checked."""
