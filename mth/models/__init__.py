"""Loads models and tokenizers, describes their shapes, and makes the embedded model. Knows tickets and tasks; knows no engine and no run."""
