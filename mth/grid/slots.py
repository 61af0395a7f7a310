"""Where the cells of this machine run: its GPUs, and shares of its cores."""

import os
import subprocess


def visible_gpus() -> list[str]:
    """GPUs that this process may use, named as in CUDA_VISIBLE_DEVICES."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name]
    try:
        listed = subprocess.run(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return listed.stdout.split() if listed.returncode == 0 else []


def slots(jobs: int | None, gpus: list[str], cores: int) -> list[dict[str, str]]:
    """Environment variables of each slot that a cell can run in: its GPU, in turn, and its share of the cores."""
    count = jobs or len(gpus) or 1
    chosen = count == 1 or "OMP_NUM_THREADS" in os.environ  # the user's own choice wins
    threads = {} if chosen else {"OMP_NUM_THREADS": str(max(1, cores // count))}
    return [threads | ({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {}) for i in range(count)]
