"""Which weights changed, by size of change and of weight."""
