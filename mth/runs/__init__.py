"""Runs on disk: folder, journal, checkpoints, summary, MLflow, and how a run is found again. Knows tickets, not how they are trained."""
