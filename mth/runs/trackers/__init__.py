"""Trackers: MLflow, TensorBoard and Weights & Biases. Each gets what the journal holds, in the background; no step waits for one."""
