"""The one reader of weights: files and their index, names of tensors, directories of steps."""
