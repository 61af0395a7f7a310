"""What the cells that run at a time on this machine need together, and what the machine has: its own memory, and that of each GPU."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mth.config.cells import Cell
from mth.foundations.errors import require
from mth.grid.local import slots, visible_gpus
from mth.grid.memory import ModelFacts, memory_estimate

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Need:
    """One memory and the cells that share it. where: for people. cells: how many at a time. needed, there: bytes."""

    where: str
    cells: int
    needed: int
    there: int

    def __str__(self) -> str:
        cells = f"{self.cells} cells at a time need" if self.cells > 1 else "a cell needs"
        return f"{cells} up to {self.needed / 2**30:.2f} GiB of the {self.there / 2**30:.1f} GiB of {self.where} (estimate)"


def machine_bytes() -> int:
    """Memory that processes here may use: the machine's, or the limit of their control group."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # "max" where there is no limit
            found.append(int(Path(file).read_text()))
    return min(found)


def gpu_bytes() -> dict[str, int]:
    """Memory of each GPU, by index and by UUID; empty without nvidia-smi."""
    query = ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = [[word.strip() for word in line.split(",")] for line in listed.splitlines()]
    return {name: int(mib) * 2**20 for *names, mib in rows for name in names}


def needs(cells: Sequence[Cell], models: Mapping[str, ModelFacts]) -> list[Need]:
    """What each memory of this machine must hold at most, the largest cells running at the same time. Empty for a grid on SLURM.

    models: facts by `repr` of `Config.model`.
    """
    local = [cell for cell in cells if cell.launcher.get("kind") == "local"]
    if not local:
        return []
    gpus = [] if all(cell.config.model.device == "cpu" for cell in local) else visible_gpus()
    parts = [memory_estimate(cell.config, models[repr(cell.config.model)]) for cell in local]
    places = slots(local[0].launcher["jobs"], gpus, 1)[: len(local)]
    if not gpus:
        largest = sorted((sum(part.values()) for part in parts), reverse=True)[: len(places)]
        return [Need("this machine", len(largest), sum(largest), machine_bytes())]
    largest = sorted((sum(part.values()) - part["process"] for part in parts), reverse=True)
    shared, there = [place["CUDA_VISIBLE_DEVICES"] for place in places], gpu_bytes()
    together = {gpu: largest[: shared.count(gpu)] for gpu in dict.fromkeys(shared)}
    return [Need(f"GPU {gpu}", len(sizes), sum(sizes), there[gpu]) for gpu, sizes in together.items() if gpu in there]


def place_on_devices(cells: Sequence[Cell], models: Mapping[str, ModelFacts]) -> list[Cell]:
    """The cells, those for SLURM asking for a GPU where their models need one. models: see `needs`.

    Raises UserError if a model that is too large for a CPU would be trained on this machine's by mistake.
    """
    from mth.models.device import LARGEST_ON_CPU, resolve_device

    placed = []
    for cell in cells:
        device, size = cell.config.model.device, models[repr(cell.config.model)].parameters
        settings = cell.launcher
        if settings.get("kind") != "slurm":
            resolve_device(device, partial(int, size))
        elif settings["gpus_per_node"] is None and device != "cpu" and (device != "auto" or size > LARGEST_ON_CPU):
            settings = settings | {"gpus_per_node": 1}
        placed.append(replace(cell, launcher=settings))
    return placed


def refuse_too_large(cells: Sequence[Cell], models: Mapping[str, ModelFacts]) -> None:
    """Raise UserError, naming the key, if the cells that would run at a time do not fit."""
    for need in needs(cells, models):
        fitting = need.cells * need.there // need.needed
        remedy = f"use hydra.launcher.jobs={fitting}" if fitting else "lower train.micro_batch_tokens or rollout.batch_size"
        require(need.needed <= need.there, f"{need}; {remedy}")
