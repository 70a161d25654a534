"""Weight metrics as the authors of arXiv 2507.10616 computed them, in bfloat16."""
