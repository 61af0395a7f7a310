"""Tickets: masks, the flat vector of active entries, and its gradient. Knows shapes and parameters, but no task and no engine."""
