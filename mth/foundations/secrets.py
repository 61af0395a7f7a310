"""Names of what must not leave this machine by mistake."""

TOKEN_VARIABLE = "MTH_ENGINE_TOKEN"  # environment variable with the secret of an engine's server, needed unless it listens on loopback
