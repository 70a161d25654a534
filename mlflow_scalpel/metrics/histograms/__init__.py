"""Which weights changed, and by how much: counts of a matrix's elements in bins."""
