"""Foundations: errors, atomic files, paths, named seeds, signals, provenance. Know nothing about models, tasks or training."""
