"""The Gram matrix of a run's collected gradients, computed block by block and kept beside them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mth.analysis.collection import KeptSpectrum, Run
from mth.analysis.needs import Need
from mth.config.choices import Collect
from mth.foundations.errors import UserError
from mth.foundations.files import read_json, write_json
from mth.foundations.progress import Bar
from mth.runs.folder import RunFolder
from mth.runs.gradient_files import Gradients, open_gradients, read_header, whole_steps


def gram_matrix(gradients: Gradients, progress: bool = False) -> np.ndarray:
    """G G^T [T, T] in fp64 of the collected gradients G [T, K]. Holds one block of them in memory at a time.

    Raises UserError naming the step if a gradient is not finite.
    """
    total = np.zeros((len(gradients.steps), len(gradients.steps)))
    for block in Bar(gradients.blocks(), desc="gram", unit="blocks", disable=not progress):
        wide = block.astype(np.float64)
        total += wide @ wide.T
    bad = [step for step, finite in zip(gradients.steps, np.isfinite(np.diag(total)), strict=True) if not finite]
    if bad:
        raise UserError(f"{gradients.folder}: the gradient of step {bad[0]} is not finite; the run collapsed there")
    return total


def eigenvalues_of(gram: np.ndarray) -> np.ndarray:
    """Eigenvalues [T] of a Gram matrix, descending; rounding errors below zero become zero."""
    return np.clip(np.linalg.eigvalsh(gram)[::-1], 0, None)


def stored_gram(run_dir: Path) -> tuple[dict[str, Any], list[int], np.ndarray]:
    """Header, steps and Gram matrix of a run's gradients. Computes it once; the gradients may then be deleted.

    Raises UserError as `open_gradients` and `gram_matrix` do.
    """
    folder = RunFolder(run_dir).gradients
    saved, steps = read_json(folder / "gram.json"), whole_steps(run_dir)
    if saved and (not steps or saved["steps"] == steps):
        return read_header(folder), saved["steps"], np.array(saved["gram"])
    gradients = open_gradients(run_dir)
    gram = gram_matrix(gradients, progress=True)
    write_json(folder / "gram.json", {"steps": gradients.steps, "gram": gram.tolist()})
    return gradients.header, gradients.steps, gram


@dataclass(frozen=True)
class RunGradients:
    """The gradients of a run. header: `collection.json`. steps [T]: those that have a gradient. gram [T, T]: their Gram matrix.

    kept_theory: of a run read from a frame, which has no gradients; empty if the frame has none.
    """

    run: Run
    header: dict[str, Any]
    steps: list[int]
    gram: np.ndarray
    kept_theory: dict[str, Any] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether they are whole gradients and not sketches."""
        return bool(self.header["mode"] == "exact")


def gradients_of(needed: Need) -> RunGradients:
    """The gradients that the figures show. Prefers a done run to an unfinished one, then whole gradients to sketches.

    Raises UserError if no run has gradients, or if a folder has gradients of another run.
    """
    there = [run for run in needed.runs if run.path is not None or run.spectrum is not None]
    collected = [run for run in there if run.config.spectrum.mode is not Collect.none]
    run = max(collected, key=lambda run: (run.done, run.config.spectrum.mode is Collect.exact), default=None)
    if run is None:
        raise UserError("no run has gradients")
    if run.path is None:
        kept = run.spectrum
        assert kept is not None
        return RunGradients(run, kept.header, kept.steps, kept.gram, kept.theory)
    header, steps, gram = stored_gram(run.path)
    _check_header(run, header)
    return RunGradients(run, header, steps, gram)


def kept_spectrum(run: Run) -> KeptSpectrum | None:
    """What a frame keeps of a run's gradients; None if no figure has read them."""
    if run.path is None:
        return run.spectrum
    folder = RunFolder(run.path).gradients
    saved = read_json(folder / "gram.json")
    if not saved:
        return None
    return KeptSpectrum(read_header(folder), saved["steps"], np.array(saved["gram"]), read_json(folder / "theory.json") or {})


def _check_header(run: Run, header: dict[str, Any]) -> None:
    """Raise UserError if the gradients in a run's folder belong to another run."""
    own = {"model": run.config.model.name, "task": run.config.task.name, "mode": run.config.spectrum.mode.name}
    own |= {"mask_sha256": run.summary.mask_sha256} if run.summary.mask_sha256 is not None else {}
    for key, value in own.items():
        if header.get(key) != value:
            raise UserError(f"{run.name} has gradients of another run: their {key} is {header.get(key)}, the run's is {value}")
