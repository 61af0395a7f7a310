"""Chooses samples of runs to be read: by step, task, kind and text, best or worst first, or the same prompt before and after."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

from mth.foundations.errors import UserError, require
from mth.runs.folder import RunFolder
from mth.runs.samples import EVAL, Sample, read_samples, sample_files


@dataclass(frozen=True)
class Choice:
    """What is to be shown. None, or empty: no condition. order: `best`, `worst` or empty. limit: most samples; 0 for all."""

    step: int | None = None
    task: str | None = None
    kind: str | None = None
    order: str = ""
    grep: str = ""
    limit: int = 10

    def admits(self, sample: Sample) -> bool:
        """Whether a sample is of this task and kind, and has the text in its prompt or one of its turns."""
        fits = self.task in (None, sample.task) and self.kind in (None, sample.kind)
        return fits and any(self.grep in text for text in (sample.prompt, *sample.turns))

    def first(self, found: Iterator[Any], worth: Any) -> list[Any]:
        """The first of what was found, in the order that is asked for. worth: function that gives what best and worst go by."""
        limit = self.limit or None
        if not self.order:
            return list(islice(found, limit))
        sign = -1 if self.order == "best" else 1
        if limit is None:
            return sorted(found, key=lambda one: sign * worth(one))
        return heapq.nsmallest(limit, found, key=lambda one: sign * worth(one))


@dataclass(frozen=True)
class Shown:
    """A sample and the run that it is of. run: the cell's name in a grid, else empty."""

    run: str
    sample: Sample

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return ({"run": self.run} if self.run else {}) | asdict(self.sample)


@dataclass(frozen=True)
class Compared:
    """The same prompt, answered more than once: at the first and the last evaluation of a run, or by the cells of a grid."""

    replies: list[Shown]

    @property
    def change(self) -> float:
        """Reward of the last reply less that of the first; in a grid, what lies between the best and the worst cell."""
        rewards = [shown.sample.reward for shown in self.replies]
        return max(rewards) - min(rewards) if self.replies[0].run else rewards[-1] - rewards[0]

    def to_json(self) -> dict[str, Any]:
        """As plain data: what is the prompt's once, then the replies."""
        shared = ("task", "uid", "reply", "prompt", "truth")
        plain = [shown.to_json() for shown in self.replies]
        replies = [{key: value for key, value in one.items() if key not in shared} for one in plain]
        return {key: plain[0][key] for key in shared} | {"change": self.change, "replies": replies}


Runs = dict[str, dict[int, Path]]  # run -> step -> file


def runs_with_samples(folders: dict[str, Path]) -> Runs:
    """The files of samples of these run folders. Raises UserError if none has any."""
    runs = {name: sample_files(RunFolder(folder).samples) for name, folder in folders.items()}
    if not any(runs.values()):
        who = f"{next(iter(folders.values()))} has" if len(folders) == 1 else "the cells of this grid have"
        raise UserError(f"{who} no samples: not started yet, run by an older version of mth, or with samples.eval=0 and samples.train=0")
    return {name: files for name, files in runs.items() if files}


def choose(runs: Runs, choice: Choice) -> list[Shown]:
    """The samples that are asked for, newest step first; in a grid the cells take turns, so that the same prompt of each stands together.

    Raises UserError if there are none, or if a file is damaged.
    """
    steps = sorted(set(chain.from_iterable(runs.values())), reverse=True)
    if choice.step is not None:
        require(choice.step in steps, f"no samples of step {choice.step}; there are {_named(steps)}")
        steps = [choice.step]
    found = (shown for step in steps for shown in _of_step(runs, step) if choice.admits(shown.sample))
    return _some(choice.first(found, lambda shown: shown.sample.reward), choice)


def _of_step(runs: Runs, step: int) -> Iterator[Shown]:
    cells = [[Shown(name, sample) for sample in read_samples(files[step])] for name, files in runs.items() if step in files]
    return (shown for row in zip_longest(*cells) for shown in row if shown is not None)


def compare(runs: Runs, choice: Choice) -> list[Compared]:
    """The same evaluation prompt at the first and the last evaluation (or at the one of `choice.step`), largest change of the reward first.

    In a grid: at the last evaluation of each cell, or at that step. Raises UserError if there is nothing to compare.
    """
    require(choice.kind in (None, EVAL), "--changed compares evaluations; leave --kind out, or give --kind eval")
    if len(runs) == 1:
        ((name, files),) = runs.items()
        before, after = _evaluation(files, 0), _evaluation(files, -1, choice.step)
        require(
            bool(before and after) and before[0].step != after[0].step,
            f"samples of one evaluation only{f' (step {before[0].step})' if before else ''}: nothing to compare",
        )
        columns = [("", before), ("", after)]
    else:
        columns = [(name, _evaluation(files, -1, choice.step)) for name, files in runs.items()]
    rows: dict[tuple[str, str, int], list[Shown]] = {}
    for name, samples in columns:
        for sample in samples:
            rows.setdefault((sample.task, sample.uid, sample.reply), []).append(Shown(name, sample))
    shared = [Compared(row) for row in rows.values() if len(row) > 1 and any(choice.admits(shown.sample) for shown in row)]
    ordered = shared if choice.order else sorted(shared, key=lambda row: -abs(row.change))
    return _some(choice.first(iter(ordered), lambda row: row.change), choice)


def _evaluation(files: dict[int, Path], index: int, step: int | None = None) -> list[Sample]:
    """The samples of the first (0) or last (-1) evaluation that was kept, or of that at a step; empty if there is none.

    Raises UserError if a step is given at which no evaluation was kept.
    """
    if step is not None:
        found = [sample for sample in read_samples(files[step]) if sample.kind == EVAL] if step in files else []
        require(bool(found), f"no samples of an evaluation at step {step}; there are {_named(list(files))}")
        return found
    for path in (list(files.values())) if index == 0 else reversed(files.values()):
        if found := [sample for sample in read_samples(path) if sample.kind == EVAL]:
            return found
    return []


def _some(found: list[Any], choice: Choice) -> list[Any]:
    """What was found. Raises UserError naming the conditions if that is nothing."""
    conditions = {"--step": choice.step, "--task": choice.task, "--kind": choice.kind, "--grep": choice.grep or None}
    said = " ".join(f"{name} {value!s}" for name, value in conditions.items() if value is not None)
    require(bool(found), f"no sample fits{f' {said!r}' if said else ''}")
    return found


def _named(steps: Sequence[int]) -> str:
    ordered = sorted(steps)
    return ", ".join(map(str, ordered)) if len(ordered) <= 8 else f"{len(ordered)} steps from {ordered[0]} to {ordered[-1]}"
