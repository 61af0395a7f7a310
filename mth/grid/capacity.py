"""What the cells that run at a time on this machine need together, and what the machine has: its own memory, and that of each GPU."""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

from mth.config.cells import Cell
from mth.config.schema import Config
from mth.foundations.errors import UserError
from mth.grid.devices import slots, visible_gpus
from mth.grid.memory import ModelFacts, memory_estimate, on_card

SMALL_CACHE_MIB = 1024  # of vLLM: enough for a few hundred short sequences
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
    """Memory of each GPU, by index and by UUID; empty without nvidia-smi. A GPU that shares the machine's memory has none of its own: left out."""
    query = ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = [[word.strip() for word in line.split(",")] for line in listed.splitlines()]
    return {name: int(mib) * 2**20 for *names, mib in rows if mib.isdecimal() for name in names}


def needs(cells: Sequence[Cell], models: Mapping[str, ModelFacts], card: int | None = None) -> list[Need]:
    """What each memory must hold at most, the largest cells running at the same time: this machine's, or one GPU of `card` bytes per cell.

    models: facts by `repr` of `Config.model`. Without a card, cells for SLURM count nowhere: their nodes have memory of their own.
    """
    if card is not None:
        parts = [memory_estimate(cell.config, models[repr(cell.config.model)], card) for cell in cells if cell.config.model.device != "cpu"]
        return [Need(f"a GPU of {card / 2**30:.0f} GiB", 1, max(map(on_card, parts)), card)] if parts else []
    local = [cell for cell in cells if cell.launcher.get("kind") != "slurm"]
    if not local:
        return []
    gpus = [] if all(cell.config.model.device == "cpu" for cell in local) else visible_gpus()
    if len(local) == 1:
        gpus = _gpus_of_device(local[0].config.model.device, gpus)
    there = gpu_bytes() if gpus else {}
    places = slots(local[0].launcher.get("jobs"), gpus, 1)[: len(local)]

    def sizes(card: int | None) -> list[dict[str, int]]:
        return [memory_estimate(cell.config, models[repr(cell.config.model)], card) for cell in local]

    if not gpus:
        largest = sorted((sum(part.values()) for part in sizes(None)), reverse=True)[: len(places)]
        return [Need("this machine", len(largest), sum(largest), machine_bytes())]
    shared = [place["CUDA_VISIBLE_DEVICES"] for place in places]
    found = []
    for gpu in dict.fromkeys(shared):
        if gpu in there:
            largest = sorted(map(on_card, sizes(there[gpu])), reverse=True)[: shared.count(gpu)]
            found.append(Need(f"GPU {gpu}", len(largest), sum(largest), there[gpu]))
    return found


def _gpus_of_device(device: str, gpus: list[str]) -> list[str]:
    """The GPU that a single run names by `model.device=cuda:N`, or all of them."""
    _, _, number = device.partition(":")
    return gpus[int(number) :][:1] if number else gpus


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
    """Raise UserError, naming the key, if the cells that would run at a time do not fit, or as `place_on_devices` does."""
    for need in needs(cells, models):
        if need.needed > need.there:
            place_on_devices(cells, models)  # a GPU that is missed says more
            raise UserError(f"{need}; {remedy(need, cells, models)}")


def remedy(need: Need, cells: Sequence[Cell], models: Mapping[str, ModelFacts]) -> str:
    """What to type so that what is needed fits: fewer cells at a time, or the first key that is enough for the largest cell."""
    fewer = need.cells * need.there // need.needed
    if fewer:
        return f"use hydra.launcher.jobs={fewer}"
    on_gpu = need.where != "this machine"

    def size(config: Config, model: ModelFacts) -> int:
        parts = memory_estimate(config, model, need.there if on_gpu else None)
        return on_card(parts) if on_gpu else sum(parts.values())

    cell = max(cells, key=lambda cell: size(cell.config, models[repr(cell.config.model)]))
    for text, config in changes(cell.config):
        if size(config, models[repr(cell.config.model)]) <= need.there:
            return f"use {text}"
    return "a sixteenth of train.micro_batch_tokens and rollout.batch_size would not fit either: take a smaller model, a sparser ticket or more memory"


def changes(config: Config) -> Iterator[tuple[str, Config]]:
    """Changes that save memory, the least costly first: what to type, and the configuration it makes."""
    config = deepcopy(config)
    if config.rollout.engine == "vllm" and (config.rollout.kv_cache_mib or 0) > SMALL_CACHE_MIB:
        yield f"rollout.kv_cache_mib={SMALL_CACHE_MIB}", replace(config, rollout=replace(config.rollout, kv_cache_mib=SMALL_CACHE_MIB))
    tokens, sequences = config.train.micro_batch_tokens, config.rollout.batch_size
    parts = (1, 2, 4, 8, 16)
    pairs = product(parts, parts if config.rollout.engine == "hf" else (1,))
    for fewer_tokens, fewer_sequences in sorted(pairs, key=lambda pair: (pair[0] * pair[1], pair[0]))[1:]:
        config.train.micro_batch_tokens, config.rollout.batch_size = max(tokens // fewer_tokens, 1), max(sequences // fewer_sequences, 1)
        new = {"train.micro_batch_tokens": config.train.micro_batch_tokens} if fewer_tokens > 1 else {}
        new |= {"rollout.batch_size": config.rollout.batch_size} if fewer_sequences > 1 else {}
        text = " ".join(f"{key}={value}" for key, value in new.items())
        yield text, config
    config.model.activation_checkpointing = True
    yield f"{text} model.activation_checkpointing=true", config
    if config.rollout.engine == "vllm":
        config.rollout.gpu_memory_utilization /= 2
        yield f"{text} model.activation_checkpointing=true rollout.gpu_memory_utilization={config.rollout.gpu_memory_utilization:g}", config
