"""A run as the analysis sees it, and a collection of runs in which each counts once."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mth.config.schema import Config
from mth.foundations.errors import UserError
from mth.runs.folder import DONE
from mth.runs.journal import Entry
from mth.runs.summary import Summary


@dataclass(frozen=True)
class KeptSpectrum:
    """What the figures need of a run's gradients, without the gradients: the header, steps [T], Gram matrix [T, T], and `theory.json`.

    theory: empty if it was not computed.
    """

    header: dict[str, Any]
    steps: list[int]
    gram: np.ndarray
    theory: dict[str, Any]


@dataclass
class Run:
    """One run.

    status: finished, collapsed, failed, interrupted, running, or unfinished (ended without a summary). entries: metrics by step.
    path: its folder, if it has one here. changed: time of the journal's last change, in seconds since 1970. spectrum: what a
    frame kept. shapes: of the model's parameters, once a figure has read them or from a frame.
    """

    name: str
    config: Config
    identity: str
    status: str
    reason: str
    commit: str
    summary: Summary
    entries: list[Entry]
    path: Path | None = None
    changed: float = 0.0
    spectrum: KeptSpectrum | None = None
    shapes: dict[str, tuple[int, ...]] | None = None

    @property
    def done(self) -> bool:
        """Whether the run took all its steps or collapsed."""
        return self.status in DONE

    @property
    def collapsed(self) -> bool:
        return self.status == "collapsed"

    @property
    def sparsity(self) -> float:
        """Percent of the entries that are frozen."""
        return self.config.sparsity.percent

    @property
    def lr(self) -> float:
        return self.config.lr.value or 0

    @property
    def is_full(self) -> bool:
        """Whether it trained every entry."""
        return self.sparsity == 0

    @property
    def mask_name(self) -> str:
        """Its mask in words, for tables and legends."""
        if self.is_full:
            return "full training"
        return f"random, {self.sparsity:g} %" if self.config.mask.family == "random" else self.config.mask_name


@dataclass
class Collection:
    """Runs of one or several sources.

    source: names what was read. problems: one line for each run that could not be read. repeats: identity -> names of the runs that were
    left out because the same run is in `runs`.
    """

    source: str
    runs: list[Run]
    problems: list[str] = field(default_factory=list)
    repeats: dict[str, list[str]] = field(default_factory=dict)


def merged(collections: Sequence[Collection]) -> Collection:
    """Several collections as one, in which each run counts once."""
    if len(collections) == 1:
        return collections[0]
    result = Collection(", ".join(each.source for each in collections), [run for each in collections for run in each.runs])
    for each in collections:
        result.problems += each.problems
        for name, others in each.repeats.items():
            result.repeats.setdefault(name, []).extend(others)
    return without_repeats(result)


def without_repeats(collection: Collection) -> Collection:
    """Keep one run per identity and list the others as repeats. A done run wins, then the one with more steps, then the newest.

    Different runs may share a name, as in MLflow; their identity is then added to the name. Raises UserError if there is no run.
    """
    if not collection.runs:
        more = f"; {collection.problems[0]}" if collection.problems else ""
        raise UserError(f"{collection.source} has no runs of mth{more}")
    best: dict[str, Run] = {}
    for run in collection.runs:
        other = best.get(run.identity)
        if other is None:
            best[run.identity] = run
            continue
        better, worse = (run, other) if _rank(run) > _rank(other) else (other, run)
        best[run.identity] = better
        collection.repeats.setdefault(run.identity, []).append(worse.name)
    collection.runs = list(best.values())
    names = Counter(run.name for run in collection.runs)
    for run in collection.runs:
        if names[run.name] > 1:
            run.name = f"{run.name} ({run.identity})"
    return collection


def _rank(run: Run) -> tuple[bool, int, float]:
    return run.done, run.entries[-1].step if run.entries else -1, run.changed
