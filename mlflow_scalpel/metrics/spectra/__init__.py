"""Singular values of each matrix and of its update."""
