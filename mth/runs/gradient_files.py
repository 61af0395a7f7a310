"""The files of a run's gradients: one per step, taken before clipping, either whole or as a random projection (paper, appendix B).

The folder `spectrum/` of a run holds `collection.json`, the header, and `step_000001.bin`, ... with the raw numbers of one gradient each.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mth.config.choices import Dtype
from mth.config.schema import Config
from mth.foundations.errors import UserError
from mth.foundations.files import read_json, write_json
from mth.runs.folder import RunFolder

FORMAT = "mth-gradients-1"


def gradients_header(config: Config, entries: int, mask_sha256: str) -> dict[str, Any]:
    """The header of a run's gradients. entries: K, the length of a gradient."""
    return {
        "format": FORMAT,
        "mode": config.spectrum.mode.name,
        "dtype": config.spectrum.dtype.name,
        "width": config.spectrum.width,
        "seed": config.spectrum.seed,
        "entries": entries,
        "mask_sha256": mask_sha256,
        "model": config.model.name,
        "task": config.task.name,
    }


def read_header(folder: Path) -> dict[str, Any]:
    """The header in a folder of gradients, empty if there is none."""
    return read_json(folder / "collection.json")


def write_header(folder: Path, header: dict[str, Any]) -> None:
    """Write the header into a folder of gradients."""
    write_json(folder / "collection.json", header)


def step_file(folder: Path, step: int) -> Path:
    """The file of one gradient."""
    return folder / f"step_{step:06d}.bin"


def step_files(folder: Path) -> Iterator[tuple[Path, int]]:
    """Every gradient file with its step, in order, whether complete or not."""
    for path in sorted(folder.glob("step_*.bin")):
        yield path, int(path.stem.removeprefix("step_"))


def stored_numbers(header: dict[str, Any]) -> int:
    """How many numbers are stored per gradient: every entry, or the width of the projection."""
    return int(header["entries"] if header["mode"] == "exact" else header["width"])


def gradient_bytes(header: dict[str, Any]) -> int:
    """Size of a gradient file. A projection is stored in fp64."""
    return stored_numbers(header) * (Dtype[header["dtype"]].bytes if header["mode"] == "exact" else 8)


@dataclass(frozen=True)
class Gradients:
    """The gradients of a run. steps [T]: those whose file is complete. size: numbers stored per gradient."""

    folder: Path
    header: dict[str, Any]
    steps: list[int]
    size: int

    @property
    def exact(self) -> bool:
        """Whether they are whole gradients and not projections."""
        return bool(self.header["mode"] == "exact")

    def block(self, start: int, end: int) -> np.ndarray:
        """Entries [start, end) of every gradient: [T, end - start], fp32 (projections: fp64)."""
        return np.stack([self._read(step, start, end) for step in self.steps])

    def blocks(self, memory_bytes: int = 2**28) -> Iterator[np.ndarray]:
        """All entries in blocks [T, n] of about `memory_bytes` each."""
        width = max(1, memory_bytes // (8 * max(len(self.steps), 1)))
        for start in range(0, self.size, width):
            yield self.block(start, min(start + width, self.size))

    def _read(self, step: int, start: int, end: int) -> np.ndarray:
        path = step_file(self.folder, step)
        if not self.exact:
            return np.fromfile(path, np.float64, end - start, offset=8 * start)
        if self.header["dtype"] == "float32":
            return np.fromfile(path, np.float32, end - start, offset=4 * start)
        high = np.fromfile(path, np.uint16, end - start, offset=2 * start)
        return (high.astype(np.uint32) << 16).view(np.float32)  # bf16 is the upper half of fp32


def whole_steps(run_dir: Path) -> list[int]:
    """Steps of a run whose gradient file is complete."""
    folder = RunFolder(run_dir).gradients
    header = read_header(folder)
    if header.get("format") != FORMAT:
        return []
    return [step for path, step in step_files(folder) if path.stat().st_size == gradient_bytes(header)]


def open_gradients(run_dir: Path) -> Gradients:
    """The gradients of a run. Raises UserError if there are fewer than two, or if they are in another format."""
    folder = RunFolder(run_dir).gradients
    header = read_header(folder)
    if header.get("format") != FORMAT:
        raise UserError(f"{run_dir} has no gradients; collect them with experiment=fig4_spectrum")
    steps = whole_steps(run_dir)
    if len(steps) < 2:
        raise UserError(f"{folder} has {len(steps)} whole gradients; a spectrum needs two at least")
    return Gradients(folder, header, steps, stored_numbers(header))
