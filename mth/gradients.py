"""One gradient per step, taken before clipping (paper, appendix B): whole ones on disk, or a seeded random projection of each.

A collection is a folder `spectrum/` in the run's: `collection.json` and one file per step. Steps that a resume runs again are written again.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mth.config import Collect, Config, Dtype
from mth.errors import UserError
from mth.files import read_json, write_json
from mth.tickets.ticket import Ticket

FORMAT = "mth-gradients-1"
FOLDER = "spectrum"
CHUNK = 2**22  # entries hashed at a time
BYTES = {Dtype.float32: 4, Dtype.bfloat16: 2}


def sketch(gradient: torch.Tensor, width: int, seed: int) -> np.ndarray:
    """Seeded sparse random projection of a flat gradient [K] to [width] fp64: every entry is added, with a random sign, to one random bucket.

    The inner product of two such sketches is an unbiased estimate of that of the gradients, with variance at most
    (|g|^2 |h|^2 + (g.h)^2) / width (count sketch: Charikar et al. 2002; Weinberger et al. 2009). Buckets and signs are a function of seed
    and position alone, by integer arithmetic; no matrix is kept. O(K) time.
    """
    total = torch.zeros(width, dtype=torch.float64, device=gradient.device)
    for start in range(0, gradient.numel(), CHUNK):
        piece = gradient[start : start + CHUNK].double()
        bits = _hash(torch.arange(start, start + piece.numel(), device=gradient.device), seed)
        sign = 1.0 - 2.0 * (bits & 1).double()
        total.index_add_(0, (bits >> 1) % width, piece * sign)
    return total.cpu().numpy()


def _hash(position: torch.Tensor, seed: int) -> torch.Tensor:
    """62 well-mixed bits per position: the finalizer of splitmix64 (Steele et al. 2014), in wrapping int64 arithmetic."""

    def shift(value: torch.Tensor, bits: int) -> torch.Tensor:  # logical, where >> of int64 is arithmetic
        return (value >> bits) & ((1 << (64 - bits)) - 1)

    start = (0x9E3779B97F4A7C15 * (2 * seed + 1)) % 2**64
    value = position + (start - 2**64 if start >= 2**63 else start)
    value = (value ^ shift(value, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    value = (value ^ shift(value, 27)) * (0x94D049BB133111EB - 2**64)
    return shift(value ^ shift(value, 31), 2)


class Collector:
    """Writes one file per step into a run's folder.

    Raises UserError before training starts when the disk cannot hold what is still to come, or when the folder has the gradients of
    another model, mask or projection.
    """

    def __init__(self, run_dir: Path, config: Config, ticket: Ticket, done: int) -> None:
        self.settings, self.folder = config.spectrum, run_dir / FOLDER
        size = ticket.active_parameters
        each = size * BYTES[self.settings.dtype] if self.settings.mode is Collect.exact else self.settings.width * 8
        header = {
            "format": FORMAT,
            "mode": self.settings.mode.name,
            "dtype": self.settings.dtype.name,
            "width": self.settings.width,
            "seed": self.settings.seed,
            "entries": size,
            "mask_sha256": ticket.mask_sha256,
            "model": config.model.name,
            "task": config.task.name,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        known = read_json(self.folder / "collection.json")
        different = [key for key in header if known and known.get(key) != header[key]]
        if different:
            raise UserError(
                f"{self.folder} has gradients of another run: {different[0]} is {known.get(different[0])}, here {header[different[0]]}"
            )
        write_json(self.folder / "collection.json", header)
        for path, step in list(_files(self.folder)):
            if step > done:
                path.unlink()
        needed, free = each * (config.train.steps - max(done, 0)), shutil.disk_usage(self.folder).free
        self.announcement = f"gradients: {config.train.steps} of {size:,} entries, {needed / 2**30:.2f} GiB to come in {self.folder}"
        if needed > free:
            raise UserError(
                f"{self.announcement}, but only {free / 2**30:.2f} GiB are free there; make room, or choose spectrum.mode=sketch"
                + (" or spectrum.dtype=bfloat16" if self.settings.dtype is Dtype.float32 else "")
            )

    def add(self, step: int, gradient: torch.Tensor) -> None:
        """Keep the flat gradient [K] of a step; the file is whole or not there. Raises UserError when the disk is full."""
        path = self.folder / f"step_{step:06d}.bin"
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                if self.settings.mode is Collect.sketch:
                    sketch(gradient, self.settings.width, self.settings.seed).tofile(file)
                else:
                    dtype = getattr(torch, self.settings.dtype.name)
                    for piece in gradient.detach().split(CHUNK):
                        piece.to(dtype).cpu().view(torch.uint8).numpy().tofile(file)
            os.replace(temporary, path)
        except OSError as error:
            raise UserError(f"gradient {path} could not be written ({error}); make room, then start again with resume=true") from error
        finally:
            temporary.unlink(missing_ok=True)


def _files(folder: Path) -> Iterator[tuple[Path, int]]:
    for path in sorted(folder.glob("step_*.bin")):
        yield path, int(path.stem.removeprefix("step_"))


@dataclass(frozen=True)
class Gradients:
    """A collection on disk. header: what was written with it. steps: those that are there whole. size: numbers kept per gradient."""

    folder: Path
    header: dict[str, Any]
    steps: list[int]
    size: int

    @property
    def exact(self) -> bool:
        return bool(self.header["mode"] == "exact")

    def block(self, start: int, end: int) -> np.ndarray:
        """Entries [start, end) of every gradient: [T, end - start] fp32 (fp64 for sketches)."""
        return np.stack([self._read(step, start, end) for step in self.steps])

    def blocks(self, memory_bytes: int = 2**28) -> Iterator[np.ndarray]:
        """All entries, block by block: each [T, n] within about `memory_bytes`."""
        width = max(1, memory_bytes // (8 * max(len(self.steps), 1)))
        for start in range(0, self.size, width):
            yield self.block(start, min(start + width, self.size))

    def _read(self, step: int, start: int, end: int) -> np.ndarray:
        path = self.folder / f"step_{step:06d}.bin"
        if not self.exact:
            return np.fromfile(path, np.float64, end - start, offset=8 * start)
        if self.header["dtype"] == "float32":
            return np.fromfile(path, np.float32, end - start, offset=4 * start)
        high = np.fromfile(path, np.uint16, end - start, offset=2 * start)
        return (high.astype(np.uint32) << 16).view(np.float32)  # bf16 is the upper half of fp32


def whole_steps(run_dir: Path) -> list[int]:
    """Steps whose gradient is there in full length."""
    header = read_json(run_dir / FOLDER / "collection.json")
    if header.get("format") != FORMAT:
        return []
    return [step for path, step in _files(run_dir / FOLDER) if path.stat().st_size == _size(header) * _width(header)]


def open_gradients(run_dir: Path) -> Gradients:
    """The collection of a run. Raises UserError when there is none, when it is another format, or when it has fewer than two gradients."""
    folder = run_dir / FOLDER
    header = read_json(folder / "collection.json")
    if header.get("format") != FORMAT:
        raise UserError(f"{run_dir} has no gradients; collect them with experiment=fig4_spectrum")
    steps = whole_steps(run_dir)
    if len(steps) < 2:
        raise UserError(f"{folder} has {len(steps)} whole gradients; a spectrum needs two at least")
    return Gradients(folder, header, steps, _size(header))


def _size(header: dict[str, Any]) -> int:
    return int(header["entries"] if header["mode"] == "exact" else header["width"])


def _width(header: dict[str, Any]) -> int:
    return BYTES[Dtype[header["dtype"]]] if header["mode"] == "exact" else 8
