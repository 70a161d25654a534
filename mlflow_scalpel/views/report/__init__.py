"""The static report, and its figures as files."""
