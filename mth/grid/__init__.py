"""Grids: checked before anything runs, frozen at submission, run here or on SLURM, watched and resumed from files alone.

Sits on training, which knows nothing of it.
"""
