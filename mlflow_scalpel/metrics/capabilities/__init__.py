"""What a checkpoint can do that its base could not, and the other way round."""
