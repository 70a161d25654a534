"""Weight metrics: the files of models, a matrix of them at a time, rows of all."""
