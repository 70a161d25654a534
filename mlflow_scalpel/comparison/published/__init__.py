"""Published results as runs: files that are read, checked and logged."""
