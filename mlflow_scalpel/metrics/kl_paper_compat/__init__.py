"""KL as the authors of arXiv 2507.10616 computed it, in bfloat16 from end to end."""
