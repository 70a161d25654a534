"""What `gpu_check.py` runs: a module a subject, a function a check."""
