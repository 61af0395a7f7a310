"""Generates with the trainer's own transformers model: prefill, sampling, key-value cache. Knows nothing of vLLM."""
