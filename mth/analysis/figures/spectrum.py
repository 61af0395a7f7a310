"""Spectrum of a run's gradients and their effective rank (paper, Figure 4 and appendix B)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mth.analysis.figures.base import FigureSpec, Item, Setting
from mth.analysis.gram import eigenvalues_of, gradients_of
from mth.analysis.needs import Need
from mth.analysis.style import COLORS, MARKERS, panels

SHARES = (0.90, 0.95, 0.99)  # of the sum of eigenvalues


def make(setting: Setting, needed: Need) -> list[Item]:
    """Eigenvalues of centred and uncentred gradients; the table has several effective ranks. Raises UserError if no run has gradients."""
    found = gradients_of(needed)
    width = None if found.exact else found.header["width"]
    both = {"uncentred": spectrum(found.gram, width), "centred": spectrum(center(found.gram), width)}
    error = max(each.error for each in both.values())
    figure, axes = panels(2)
    draw(axes, {name: each.eigenvalues for name, each in both.items()}, error)
    table = pd.DataFrame({name: each.ranks for name, each in both.items()}).round(2).rename_axis("effective rank").reset_index()
    how = "whole gradients" if width is None else f"sketches of {width:,} numbers; an eigenvalue may be off by {error:.2%} of the sum"
    caption = (
        f"{len(found.steps)} gradients of {found.header['entries']:,} entries, one per step before clipping, from {how}. "
        "The paper's effective rank of about 44 (150 gradients, Qwen2.5-0.5B) does not say its definition."
    )
    numbers = {"number": np.arange(1, len(found.steps) + 1)}
    data = {"eigenvalues": pd.DataFrame(numbers | {name: each.eigenvalues for name, each in both.items()})}
    needed = replace(needed, missing=0 if found.run.done else 1)  # the experiment's one run counts in either mode of collection
    item = Item("spectrum", "Spectrum of the gradients (Figure 4)", caption, figure, table, needed, data)
    if not found.exact:
        item.advice = ("The assumptions of appendix F need whole gradients:", [f"{needed.command} spectrum.mode=exact"])
    return [item]


@dataclass(frozen=True)
class Spectrum:
    """eigenvalues [T]: of the Gram matrix, descending. ranks: effective ranks by name.

    error: bound on the error of an eigenvalue, as a share of their sum; 0 for whole gradients.
    """

    eigenvalues: np.ndarray
    ranks: dict[str, float]
    error: float


def spectrum(gram: np.ndarray, width: int | None = None) -> Spectrum:
    """The spectrum of a Gram matrix [T, T]. width: numbers per sketch that it was computed from; None for whole gradients."""
    eigenvalues = eigenvalues_of(gram)
    return Spectrum(eigenvalues, effective_ranks(eigenvalues), 0.0 if width is None else eigenvalue_error(gram, width))


def center(gram: np.ndarray) -> np.ndarray:
    """Gram matrix [T, T] of the gradients minus their mean."""
    row = gram.mean(0)
    return gram - row[:, None] - row[None, :] + row.mean()


def effective_ranks(eigenvalues: np.ndarray) -> dict[str, float]:
    """Common definitions of effective rank; the paper does not say which one its 44 is. lambda: eigenvalues [T], q: their shares.

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
    """How far sketches of `width` numbers may move an eigenvalue, as a share of the sum of eigenvalues.

    By Weyl's inequality an eigenvalue moves by at most the spectral norm of the error in the Gram matrix [T, T]. This returns the expected
    Frobenius norm of that error, which is no smaller.
    """
    squares = np.diag(gram)
    variance = (squares[:, None] * squares[None, :] + gram**2) / width
    return float(np.sqrt(variance.sum()) / squares.sum())


def draw(axes: Sequence[Axes], eigenvalues: Mapping[str, np.ndarray], error: float) -> None:
    """Eigenvalues (left, log) and their cumulative share (right), one line per name. error: shaded at the left."""
    left, right = axes
    for (name, values), color, marker in zip(eigenvalues.items(), COLORS, MARKERS, strict=False):
        share = values / values.sum()
        number = np.arange(1, len(values) + 1)
        visible = share > 1e-9
        left.plot(number[visible], share[visible], color=color, marker=marker, markersize=3, linewidth=1, label=name)
        right.plot(number, np.cumsum(share), color=color, marker=marker, markersize=3, linewidth=1, label=name)
    if error:
        left.axhspan(0, error, color="gray", alpha=0.2, label="within the error of the sketch")
    for level in SHARES:
        right.axhline(level, color="gray", linewidth=0.8, linestyle=":")
        right.annotate(f"{level:.0%}", (1, level), fontsize=7, color="gray", va="bottom")
    left.set(yscale="log", xlabel="eigenvalue number", ylabel="share of the sum of eigenvalues")
    right.set(xlabel="number of eigenvalues", ylabel="cumulative share", ylim=(0, 1.03))
    for each in axes:
        each.xaxis.set_major_locator(MaxNLocator(integer=True))
        each.legend(fontsize=8, frameon=False)


FIGURE = FigureSpec("spectrum", make, position=60, experiments=("fig4_spectrum",), ignore=("spectrum",))
