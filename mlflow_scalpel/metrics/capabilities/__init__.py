"""What was gained and lost, problem by problem."""
