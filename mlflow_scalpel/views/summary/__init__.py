"""Runs beside each other: the card, findings in words, differences and costs."""
