"""The paper's assumptions on collected gradients: low rank (F.1), delocalisation (F.2), lemma F.6 and proposition 5.2.

The Fisher matrix of the paper is taken as G^T G of the collected gradients G [T, d]. Its eigenvectors are v_i = G^T u_i / sqrt(lambda_i), with
the eigenvectors u_i of the Gram matrix G G^T. They are computed block by block, so only one block of entries is in memory.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mth.analysis.figures.base import FigureSpec, Item, Setting, rounded_table
from mth.analysis.gram import eigenvalues_of, gradients_of, gram_matrix
from mth.analysis.needs import Need
from mth.analysis.style import BLUE, GREEN, ORANGE, panels
from mth.config.schema import MaskConfig
from mth.foundations.errors import UserError, require
from mth.foundations.files import read_json, write_json
from mth.foundations.progress import Bar
from mth.models.shapes import parameter_shapes
from mth.runs.folder import RunFolder
from mth.runs.gradient_files import Gradients, open_gradients, whole_steps
from mth.tickets.indices import Shapes
from mth.tickets.masks import lazy_mask

MAX_RANK = 8  # of the subspace
LEVELS = (50, 90, 99, 99.9, 99.99)  # sparsities of the masks, in percent
MASK_SEEDS = (0, 10, 42)
BLOCK_BYTES = 2**28


def make(setting: Setting, needed: Need) -> list[Item]:
    """The assumptions on the gradients of a run of full training. Nothing without whole gradients, which the figure of the spectrum reports."""
    try:
        found = gradients_of(needed)
    except UserError:
        return []
    if not found.exact:
        return []
    rank = min(MAX_RANK, len(found.steps) - 1)
    asked = {"rank": rank, "percents": list(LEVELS), "seeds": list(MASK_SEEDS)}
    if found.run.path is None:
        saved = found.kept_theory
        require(
            saved.get("asked") == asked, f"{found.run.name} was read from a report, which keeps no gradients and no theory for these masks"
        )
        facts, checks = _theory(saved)
    else:
        facts, checks = stored_theory(found.run.path, parameter_shapes(found.run.config.model), rank, LEVELS, MASK_SEEDS)
    frame = pd.DataFrame([vars(each) for each in checks])
    figure, axes = panels(2)
    draw(axes, frame)
    table = frame.groupby(["percent", "active"], as_index=False)[["deviation", "bound", "error", "free"]].mean()
    caption = (
        f"F.1: the top {rank} eigenvectors hold {facts['share']:.1%} of the sum of eigenvalues. F.2: mu = sqrt(d) max|v| is "
        f"{min(facts['mu']):.0f} to {max(facts['mu']):.0f} for them (1 would be perfectly even, {np.sqrt(facts['entries']):.0f} a single entry). "
        f"Left: the restricted Gram matrix of {len(MASK_SEEDS)} random masks per size against lemma F.6 (delta = 0.05). Right: relative error "
        "in the Fisher norm when an update of the top subspace is replaced by one on the mask's entries."
    )
    values = eigenvalues_of(found.gram)
    shares = (np.cumsum(values) / values.sum())[:rank]
    vectors = pd.DataFrame({"number": np.arange(1, rank + 1), "cumulative share": shares, "mu": facts["mu"]})
    title = "The assumptions of appendix F on these gradients"
    return [Item("theory", title, caption, figure, rounded_table(table, 5), data={"eigenvectors": vectors})]


@dataclass(frozen=True)
class Subspace:
    """The top r eigenvectors v_i of G^T G.

    share: of the top r in the sum of eigenvalues (F.1). values [r]: eigenvalues. weights [T, r]: v = G^T weights.
    mu [r]: sqrt(d) max |v_i| (F.2). norms [r]: |v_i|, 1 up to rounding.
    """

    gradients: Gradients
    share: float
    values: np.ndarray
    weights: np.ndarray
    mu: np.ndarray
    norms: np.ndarray


def top_subspace(gradients: Gradients, rank: int) -> Subspace:
    """The top `rank` eigenvectors and how delocalised they are. Raises UserError for sketches, and if the gradients span fewer directions."""
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
class MaskCheck:
    """One random mask with k active entries against the theory; P keeps the mask's entries and zeroes the others.

    deviation: |(d/k) V^T P V - I|_2 of lemma F.6. bound: mu^2 r sqrt(log(1/delta) / k), the lemma's bound with C = 1.
    error: relative error in the Fisher norm of the best c' for a unit vector c, |V c - P V c'|_F / |V c|_F, root mean square over c
    (proposition 5.2). free: the same if the update may be anything on the mask's entries. The names are keys of `theory.json`.
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
) -> tuple[dict[str, Any], list[MaskCheck]]:
    """Facts about the subspace (rank, share, mu, entries) and the checks of the masks. Computed once per rank and masks, and kept on disk."""
    path, steps = RunFolder(run_dir).gradients / "theory.json", whole_steps(run_dir)
    asked = {"rank": rank, "percents": list(percents), "seeds": list(seeds)}
    saved = read_json(path)
    if not saved or saved["asked"] != asked or (steps and saved["steps"] != steps):
        space = top_subspace(open_gradients(run_dir), rank)
        checks = check_masks(space, shapes, percents, seeds, progress=True)
        facts = {"rank": rank, "share": space.share, "mu": space.mu.tolist(), "entries": space.gradients.size}
        saved = {"asked": asked, "steps": space.gradients.steps, "facts": facts, "masks": [asdict(each) for each in checks]}
        write_json(path, saved)
    return _theory(saved)


def _theory(saved: dict[str, Any]) -> tuple[dict[str, Any], list[MaskCheck]]:
    """The content of `theory.json`."""
    return saved["facts"], [MaskCheck(**each) for each in saved["masks"]]


def check_masks(
    space: Subspace, shapes: Shapes, percents: Sequence[float], seeds: Sequence[int], delta: float = 0.05, progress: bool = False
) -> list[MaskCheck]:
    """Check random masks of several sizes against lemma F.6 and proposition 5.2, in one pass over the gradients.

    shapes: of the model. Skips masks without entries. Raises UserError if the gradients are not those of the whole model.
    """
    d, rank = space.gradients.size, space.weights.shape[1]
    if sum(math.prod(shape) for shape in shapes.values()) != d:
        raise UserError(f"{space.gradients.folder} has gradients of {d:,} entries, which is not this model trained in full")
    masks = [(percent, seed) for percent in percents for seed in seeds]
    grams, counts = masked_grams(space.gradients, shapes, masks, progress)
    checks = []
    for (percent, seed), gram, k in zip(masks, grams, counts, strict=True):
        if k == 0:
            continue
        restricted = space.weights.T @ gram @ space.weights * (d / k)  # (d / k) V^T P V
        deviation = float(np.linalg.norm(restricted - np.eye(rank), 2))
        bound = float(space.mu.max() ** 2 * rank * math.sqrt(math.log(1 / delta) / k))
        checks.append(MaskCheck(percent, seed, k, deviation, bound, *_errors(space, gram)))
    return checks


def masked_grams(
    gradients: Gradients, shapes: Shapes, masks: Sequence[tuple[float, int]], progress: bool = False
) -> tuple[np.ndarray, list[int]]:
    """G P G^T [M, T, T] of M random masks, and their numbers of entries [M]. masks: (sparsity in percent, seed)."""
    lazy_masks = [lazy_mask(shapes, MaskConfig(), percent, seed) for percent, seed in masks]
    steps = len(gradients.steps)
    total, counts, offset = np.zeros((len(masks), steps, steps)), [0] * len(masks), 0
    width = max(1, BLOCK_BYTES // (8 * steps))
    for name, shape in Bar(shapes.items(), desc="masks", unit="tensors", disable=not progress):
        size = math.prod(shape)
        indices = [draw(name) for draw in lazy_masks]
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
    """`error` and `free` of a mask. gram: its G P G^T [T, T].

    The Fisher norm of an update x is |G x|, so all of it happens in T dimensions. The target is G V = U sqrt(lambda). The best c' reaches it
    within the span of G P V = gram weights; a free update reaches it within the span of G P, which equals the span of gram.
    """
    target = space.weights * space.values
    scale = np.linalg.norm(target)

    def residual(columns: np.ndarray) -> float:
        basis, values, _ = np.linalg.svd(columns, full_matrices=False)
        basis = basis[:, values > values[0] * 1e-9]
        return float(np.linalg.norm(target - basis @ (basis.T @ target)) / scale)

    return residual(gram @ space.weights), residual(gram)


def draw(axes: Sequence[Axes], frame: pd.DataFrame) -> None:
    """Lemma F.6 (left): deviation of the restricted Gram matrix and its bound. Proposition 5.2 (right): error of the top subspace.

    frame: one row per MaskCheck.
    """
    left, right = axes
    by_size = frame.groupby("active").agg(["mean", "min", "max"])
    for axis, column, color, marker, label in (
        (left, "deviation", BLUE, "o", "measured, mean and range over masks"),
        (right, "error", BLUE, "o", "best update P V c' (proposition 5.2)"),
        (right, "free", GREEN, "s", "best update on the mask"),
    ):
        part = by_size[column]
        spread = np.array([part["mean"] - part["min"], part["max"] - part["mean"]]).clip(0)
        axis.errorbar(by_size.index, part["mean"], yerr=spread, color=color, marker=marker, capsize=3, label=label)
    bound = by_size["bound"]["mean"]
    left.plot(bound.index, bound, color=ORANGE, linestyle="--", label="bound of lemma F.6 with C = 1")
    left.set(xscale="log", yscale="log", xlabel="active entries k", ylabel="|(d/k) V'PV - I|, spectral norm")
    right.set(xscale="log", xlabel="active entries k", ylabel="relative error in the Fisher norm", ylim=(-0.03, None))
    for axis in axes:
        axis.legend(fontsize=8, frameon=False)


FIGURE = FigureSpec("theory", make, position=70, experiments=("fig4_spectrum",), ignore=("spectrum",))
