"""Training with TRL: what the `sft` and `grpo` stages put together."""
