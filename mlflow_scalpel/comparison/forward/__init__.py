"""Metrics of texts that are run through the models: attention, and kinds of KL."""
