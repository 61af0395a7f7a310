"""Training: the loop, its parts, one optimizer step. Everything to the left comes together here; knows nothing of grids and figures."""
