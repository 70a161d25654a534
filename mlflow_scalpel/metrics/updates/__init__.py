"""Two runs that began with one base."""
