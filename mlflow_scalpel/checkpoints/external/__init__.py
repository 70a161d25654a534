"""Checkpoints of other tools: where trainers leave them, and what they noted."""
