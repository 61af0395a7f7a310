"""Spectrum of the gradients of a run (paper, Figure 4 and appendix B) from a collection on disk, blockwise."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mth.errors import UserError
from mth.files import read_json, write_json
from mth.gradients import FOLDER, Gradients, open_gradients, whole_steps

SHARES = (0.90, 0.95, 0.99)


@dataclass(frozen=True)
class Spectrum:
    """eigenvalues [T], descending, of the Gram matrix [T, T]. cumulative [T]: share of the first i. error: of an eigenvalue, as a share of
    their sum (0 for exact gradients).
    """

    gram: np.ndarray
    eigenvalues: np.ndarray
    cumulative: np.ndarray
    ranks: dict[str, float]
    error: float


def gram_matrix(gradients: Gradients, progress: bool = False) -> np.ndarray:
    """G G^T [T, T] in fp64 of the collected gradients [T, K]; only blocks of them are ever in memory.

    Raises UserError when a gradient is not finite, naming the step.
    """
    total = np.zeros((len(gradients.steps), len(gradients.steps)))
    blocks = gradients.blocks()
    for block in tqdm(blocks, desc="gram", unit="block", disable=not progress):
        wide = block.astype(np.float64)
        total += wide @ wide.T
    bad = [step for step, finite in zip(gradients.steps, np.isfinite(np.diag(total)), strict=True) if not finite]
    if bad:
        raise UserError(f"{gradients.folder}: the gradient of step {bad[0]} is not finite; the run collapsed there")
    return total


def center(gram: np.ndarray) -> np.ndarray:
    """Gram matrix of the gradients minus their mean."""
    row = gram.mean(0)
    return gram - row[:, None] - row[None, :] + row.mean()


def spectrum(gram: np.ndarray, width: int | None = None) -> Spectrum:
    """Eigenvalues of a Gram matrix, their cumulative share, and effective ranks. width: of the sketches that it was made of, None for exact."""
    error = 0.0 if width is None else eigenvalue_error(gram, width)
    eigenvalues = np.clip(np.linalg.eigvalsh(gram)[::-1], 0, None)
    return Spectrum(gram, eigenvalues, np.cumsum(eigenvalues) / eigenvalues.sum(), effective_ranks(eigenvalues), error)


def effective_ranks(eigenvalues: np.ndarray) -> dict[str, float]:
    """Definitions of effective rank in use; the paper's 44 does not say which it is. lambda: eigenvalues, q: their shares.

    share 90 / 95 / 99 %: eigenvalues needed for that share of the sum. entropy: exp(-sum q log q) (Roy and Vetterli 2007).
    participation: (sum lambda)^2 / sum lambda^2. stable: sum lambda / max lambda.
    """
    q = eigenvalues / eigenvalues.sum()
    positive = q[q > 0]
    cumulative = np.cumsum(q)
    shares = {f"share {share:.0%}": float(np.searchsorted(cumulative, share - 1e-12) + 1) for share in SHARES}
    return shares | {
        "entropy": float(np.exp(-(positive * np.log(positive)).sum())),
        "participation": float(1 / (q**2).sum()),
        "stable": float(1 / q[0]),
    }


def eigenvalue_error(gram: np.ndarray, width: int) -> float:
    """How far a sketch of `width` numbers may move any eigenvalue, as a share of their sum (Weyl: at most the spectral norm of the Gram matrix's
    error; here its expected Frobenius norm, from the same variance bound).
    """
    squares = np.diag(gram)
    variance = (squares[:, None] * squares[None, :] + gram**2) / width
    return float(np.sqrt(variance.sum()) / squares.sum())


def stored_gram(run_dir: Path) -> tuple[dict[str, Any], list[int], np.ndarray]:
    """Header, steps and Gram matrix of a run's collection. Made once and kept beside the gradients, which may then be deleted.

    Raises UserError as `open_gradients` and `gram_matrix` do.
    """
    path = run_dir / FOLDER / "gram.json"
    saved, steps = read_json(path), whole_steps(run_dir)
    if saved and (not steps or saved["steps"] == steps):
        return read_json(run_dir / FOLDER / "collection.json"), saved["steps"], np.array(saved["gram"])
    gradients = open_gradients(run_dir)
    gram = gram_matrix(gradients, progress=True)
    write_json(path, {"steps": gradients.steps, "gram": gram.tolist()})
    return gradients.header, gradients.steps, gram
