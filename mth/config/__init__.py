"""Configuration: from a command line or a stored file to a validated `Config`. Knows no model, task or run; imports no torch."""
