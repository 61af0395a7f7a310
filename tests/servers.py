"""Waiting for a server that a test has started."""

import time
from urllib.request import urlopen


def wait_for_health(address: str) -> None:
    """Return once MLflow's server at `address` answers; AssertionError after two minutes."""
    for _ in range(400):
        try:
            urlopen(f"{address}/health", timeout=2)
            return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"the MLflow server at {address} did not come up")
