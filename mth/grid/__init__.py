"""Grids: validated before anything runs, frozen at submission, run on one machine or on SLURM, watched and resumed from files alone."""
