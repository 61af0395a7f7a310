"""The paper's assumptions on collected gradients: low rank (F.1), delocalisation (F.2), restricted Gram matrices (lemma F.6), proposition 5.2.

The Fisher matrix of the paper is taken as G^T G of the collected gradients, so its eigenvectors v_i are G^T u_i / sqrt(lambda_i) with the
eigenvectors u_i of the Gram matrix. They are made block by block and never all held for more than a block of entries.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mth.analysis.spectrum import gram_matrix
from mth.config import MaskConfig
from mth.errors import UserError
from mth.files import read_json, write_json
from mth.gradients import FOLDER, Gradients, open_gradients, whole_steps
from mth.tickets.sampling import Shapes, chooser


@dataclass(frozen=True)
class Subspace:
    """Top-r eigenvectors of G^T G. share: of the top r in the sum of eigenvalues (F.1). values [r]. weights [T, r]: v = G^T weights.

    mu [r]: sqrt(d) max |v_i| (F.2). norms [r]: |v_i|, 1 up to rounding.
    """

    gradients: Gradients
    share: float
    values: np.ndarray
    weights: np.ndarray
    mu: np.ndarray
    norms: np.ndarray


def subspace(gradients: Gradients, rank: int) -> Subspace:
    """The top `rank` eigenvectors and how delocalised they are. Raises UserError for a sketch, which has no entries, or too high a rank."""
    if not gradients.exact:
        raise UserError(f"{gradients.folder} is a sketch; delocalisation and restricted Gram matrices need spectrum.mode=exact")
    gram = gram_matrix(gradients)
    values, vectors = np.linalg.eigh(gram)
    values, vectors = values[::-1], vectors[:, ::-1]
    usable = int((values > values[0] * 1e-12).sum())
    if rank > usable:
        raise UserError(f"rank {rank} is more than the {usable} directions that the gradients of {gradients.folder} span")
    weights = vectors[:, :rank] / np.sqrt(values[:rank])
    largest, squares = np.zeros(rank), np.zeros(rank)
    for block in gradients.blocks():
        v = block.T.astype(np.float64) @ weights
        largest = np.maximum(largest, np.abs(v).max(0))
        squares += (v**2).sum(0)
    share = float(values[:rank].sum() / values.sum())
    return Subspace(gradients, share, values[:rank], weights, largest * math.sqrt(gradients.size), np.sqrt(squares))


@dataclass(frozen=True)
class Restricted:
    """One random mask. active: k. deviation: |(d/k) V^T P V - I|_2 of lemma F.6. bound: mu^2 r sqrt(log(1/delta) / k) with C = 1.

    error: relative Fisher-norm error of the best c' for a unit vector c, averaged over c: |V c - P V c'|_F / |V c|_F (proposition 5.2, where
    the least-squares problem ranges over r coefficients). free: the same with any update on the mask's entries, not only V c' cut to it.
    """

    percent: float
    mask_seed: int
    active: int
    deviation: float
    bound: float
    error: float
    free: float


def stored_theory(
    run_dir: Path, shapes: Shapes, rank: int, percents: Sequence[float], seeds: Sequence[int]
) -> tuple[dict[str, Any], list[Restricted]]:
    """rank, share and mu of the subspace, and the masks' figures. Made once per rank and masks and kept beside the gradients."""
    path, steps = run_dir / FOLDER / "theory.json", whole_steps(run_dir)
    asked = {"rank": rank, "percents": list(percents), "seeds": list(seeds)}
    saved = read_json(path)
    if not saved or saved["asked"] != asked or (steps and saved["steps"] != steps):
        space = subspace(open_gradients(run_dir), rank)
        found = restricted(space, shapes, percents, seeds, progress=True)
        facts = {"rank": rank, "share": space.share, "mu": space.mu.tolist(), "entries": space.gradients.size}
        saved = {"asked": asked, "steps": space.gradients.steps, "facts": facts, "masks": [asdict(each) for each in found]}
        write_json(path, saved)
    return saved["facts"], [Restricted(**each) for each in saved["masks"]]


def restricted(
    space: Subspace, shapes: Shapes, percents: Sequence[float], seeds: Sequence[int], delta: float = 0.05, progress: bool = False
) -> list[Restricted]:
    """Real random masks of several sizes against lemma F.6 and proposition 5.2, in one pass over the gradients.

    shapes: of the model whose full gradients these are; raises UserError when their entries do not add up to the collected ones.
    """
    d, rank = space.gradients.size, space.weights.shape[1]
    if sum(math.prod(shape) for shape in shapes.values()) != d:
        raise UserError(f"{space.gradients.folder} has gradients of {d:,} entries, which is not this model trained in full")
    masks = [(percent, seed) for percent in percents for seed in seeds]
    grams, counts = masked_grams(space.gradients, shapes, masks, progress)
    results = []
    for (percent, seed), gram, k in zip(masks, grams, counts, strict=True):
        if k == 0:
            continue
        cut = space.weights.T @ gram @ space.weights * (d / k)  # (d / k) V^T P V
        deviation = float(np.linalg.norm(cut - np.eye(rank), 2))
        bound = float(space.mu.max() ** 2 * rank * math.sqrt(math.log(1 / delta) / k))
        results.append(Restricted(percent, seed, k, deviation, bound, *_errors(space, gram)))
    return results


def masked_grams(
    gradients: Gradients, shapes: Shapes, masks: Sequence[tuple[float, int]], progress: bool = False
) -> tuple[np.ndarray, list[int]]:
    """G P G^T [M, T, T] over the entries of each random mask (percent, seed) alone, and the masks' sizes."""
    choosers = [chooser(shapes, MaskConfig(), percent, seed) for percent, seed in masks]
    steps = len(gradients.steps)
    total, counts, offset = np.zeros((len(masks), steps, steps)), [0] * len(masks), 0
    width = max(1, 2**28 // (8 * steps))
    for name, shape in tqdm(shapes.items(), desc="masks", unit="tensor", disable=not progress):
        size = math.prod(shape)
        indices = [choose(name) for choose in choosers]
        counts = [count + (size if index is None else index.size) for count, index in zip(counts, indices, strict=True)]
        for start in range(0, size, width):
            end = min(start + width, size)
            block = gradients.block(offset + start, offset + end)
            for number, index in enumerate(indices):
                inside = slice(None) if index is None else index[slice(*np.searchsorted(index, (start, end)))] - start
                chosen = block[:, inside].astype(np.float64)
                total[number] += chosen @ chosen.T
        offset += size
    return total, counts


def _errors(space: Subspace, gram: np.ndarray) -> tuple[float, float]:
    """Root mean square over unit c of the two errors of a mask with G P G^T = gram. The Fisher norm of an update x is |G x|, so everything
    happens in T dimensions: G V = U sqrt(lambda), to be met by G P V c' = gram weights c', or by any G P x, which spans what gram spans.
    """
    target = space.weights * space.values
    scale = np.linalg.norm(target)

    def residual(columns: np.ndarray) -> float:
        basis, values, _ = np.linalg.svd(columns, full_matrices=False)
        basis = basis[:, values > values[0] * 1e-9]
        return float(np.linalg.norm(target - basis @ (basis.T @ target)) / scale)

    return residual(gram @ space.weights), residual(gram)
