"""Tables of runs: what differs between them and what came out, two of them side by side."""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mth.analysis.glance import Glance, clock, defaults
from mth.config.identity import PLACES
from mth.config.overrides import NUMBER_GROUPS
from mth.foundations.statistics import mean, paired_error, plus_minus
from mth.runs.metrics import ENTROPY, PASS_AT_1, PROMPTS, REWARD, eval_metric, of_prompts, with_error
from mth.runs.summary import changes, evaluations, results

SHORT = {name: group for group, name in NUMBER_GROUPS.items()} | {"mask.family": "mask", "rollout.engine": "rollout"}
MOST_COLUMNS = 8  # of settings, in a table for people
WINDOWS = 10  # most rows of a comparison of curves
CURVES = {REWARD: "reward", ENTROPY: "entropy", "completion/tokens_mean": "tokens"}
Table = tuple[list[str], list[list[str]]]


def short(key: str) -> str:
    """A key as it is typed: `sparsity` for `sparsity.percent`, `task` for `task.name`."""
    return SHORT.get(key, key.removesuffix(".name"))


def plain(value: Any) -> str:
    """A setting as it is typed."""
    if isinstance(value, list):
        return f"[{','.join(map(plain, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def differing(runs: Sequence[Glance]) -> list[str]:
    """Keys in which runs differ, in the schema's order; those that only say where or how a run happens are left out."""
    keys = dict.fromkeys([*defaults(), *(key for run in runs for key in run.settings)])
    return [key for key in keys if key not in PLACES and len({plain(run.settings.get(key)) for run in runs}) > 1]


def columns(runs: Sequence[Glance], keys: Sequence[str]) -> tuple[list[str], list[str]]:
    """Which of the differing keys a table shows, and which it only names: those that follow an earlier one, and those beyond the most."""
    shown: dict[tuple[int, ...], str] = {}
    for key in keys:
        numbers: dict[str, int] = {}
        shown.setdefault(tuple(numbers.setdefault(plain(run.settings.get(key)), len(numbers)) for run in runs), key)
    kept = list(shown.values())[:MOST_COLUMNS]
    return kept, [key for key in keys if key not in kept]


def name_of(run: Glance, folder: Path) -> str:
    """The run's path below a folder."""
    return str(run.path.relative_to(folder)) if run.path != folder else "."


def age(changed: float) -> str:
    """How long ago that was, in its largest unit."""
    seconds = max(0.0, time.time() - changed)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def accuracy(run: Glance, task: str) -> str:
    """`0.590 -> 0.855 ± 0.022`: first and last pass@1 on a task; empty without an evaluation."""
    first, last = (results(run.entries, index, [task]).get(task, {}) for index in (0, -1))
    if PASS_AT_1 not in last:
        return ""
    end = plus_minus(last[PASS_AT_1], last.get(with_error(PASS_AT_1)))
    return f"{first[PASS_AT_1]:.3f} -> {end}" if len(evaluations(run.entries)) > 1 and PASS_AT_1 in first else end


def tasks_of(runs: Sequence[Glance]) -> list[str]:
    """The tasks on which any of the runs was evaluated."""
    return list(dict.fromkeys(task for run in runs for task in run.tasks))


def table(runs: Sequence[Glance], folder: Path, keys: Sequence[str]) -> Table:
    """Head and rows for people. keys: settings to show."""
    tasks = tasks_of(runs)
    heads = ["pass@1"] if len(tasks) == 1 else [f"pass@1 {task}" for task in tasks]
    rows = [
        [
            name_of(run, folder),
            *(plain(run.settings[key]) if key in run.settings else "" for key in keys),
            run.status,
            f"{run.step}/{run.steps}",
            *(accuracy(run, task) for task in tasks),
            age(run.changed),
        ]
        for run in runs
    ]
    return ["run", *map(short, keys), "state", "step", *heads, "age"], rows


def exact_table(runs: Sequence[Glance], folder: Path, keys: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    """Head and rows for programs: every differing setting, numbers with all their digits."""
    tasks = tasks_of(runs)
    parts = ("first", "last", "last error", "change", "change error")
    head = ["run", *keys, "state", "step", "steps", "changed", *(f"{task} pass@1 {part}" for task in tasks for part in parts)]
    rows = []
    for run in runs:
        first, last, moved = results(run.entries, 0, tasks), results(run.entries, -1, tasks), changes(run.entries, tasks)
        error = with_error(PASS_AT_1)
        values = [
            part.get(task, {}).get(key)
            for task in tasks
            for part, key in ((first, PASS_AT_1), (last, PASS_AT_1), (last, error), (moved, PASS_AT_1), (moved, error))
        ]
        settings = [plain(run.settings[key]) if key in run.settings else "" for key in keys]
        rows.append([name_of(run, folder), *settings, run.status, run.step, run.steps, clock(run.changed), *values])
    return head, rows


def compared_settings(left: Glance, right: Glance) -> Table:
    """Settings in which two runs differ."""
    keys = differing([left, right])
    return ["setting", "A", "B"], [
        [key, *(plain(run.settings[key]) if key in run.settings else "" for run in (left, right))] for key in keys
    ]


def compared_results(left: Glance, right: Glance) -> Table:
    """State and steps of two runs, then pass@1 at every step at which both were evaluated, and the difference with its error."""
    both = (left, right)
    rows = [["state", *(run.status for run in both), ""], ["step", *(f"{run.step}/{run.steps}" for run in both), ""]]
    for task in [task for task in left.tasks if task in right.tasks]:
        key = eval_metric(task, PASS_AT_1)
        pairs = [pair for pair in _shared(left, right) if all(key in entry.metrics for entry in pair)]
        for pair in pairs:
            values = [entry.metrics[key] for entry in pair]
            errors = [entry.metrics.get(with_error(key)) for entry in pair]
            words = [plus_minus(value, error) for value, error in zip(values, errors, strict=True)]
            difference = plus_minus(values[1] - values[0], _error_between(pair, errors, task, same_prompts(left, right)), "+")
            rows.append([f"pass@1 {task}, step {pair[0].step}", *words, difference])
    return ["result", "A", "B", "B - A"], rows


def same_prompts(left: Glance, right: Glance) -> bool:
    """Whether two runs are evaluated on the same prompts: then their errors are paired."""
    of_prompts_keys = ("task.", "eval.", "seed.eval", "model.")
    return not any(key.startswith(of_prompts_keys) and key != "eval.every" for key in differing([left, right]))


def _error_between(pair: Sequence[Any], errors: Sequence[float | None], task: str, paired: bool) -> float | None:
    """Standard error of the difference between two evaluations."""
    if paired:
        old, new = (of_prompts(entry.rewards.get(task, []), entry.metrics.get(eval_metric(task, PROMPTS))) for entry in pair)
        if (error := paired_error(old[PASS_AT_1], new[PASS_AT_1])) is not None:
            return error
    known = [error for error in errors if error is not None]
    return math.hypot(*known) if len(known) == 2 else None


def _shared(left: Glance, right: Glance) -> Iterator[tuple[Any, Any]]:
    """Entries of two journals with the same step."""
    known = {entry.step: entry for entry in right.entries}
    return ((entry, known[entry.step]) for entry in left.entries if entry.step in known)


def compared_curves(left: Glance, right: Glance) -> Table:
    """Reward, entropy and length in training, averaged over a few windows of steps that both took."""
    pairs = [pair for pair in _shared(left, right) if all(REWARD in entry.metrics for entry in pair)]
    names = [name for name in CURVES if all(name in entry.metrics for pair in pairs for entry in pair)]
    size = max(1, math.ceil(len(pairs) / WINDOWS))
    rows = []
    for window in (pairs[start : start + size] for start in range(0, len(pairs), size)):
        steps = [window[0][0].step, window[-1][0].step]
        values = [mean([pair[side].metrics[name] for pair in window]) for name in names for side in (0, 1)]
        rows.append([" to ".join(map(str, dict.fromkeys(steps))), *(f"{value:.4g}" for value in values)])
    return ["steps", *(f"{CURVES[name]} {side}" for name in names for side in "AB")], rows


def exact_curves(left: Glance, right: Glance) -> tuple[list[str], list[list[Any]]]:
    """Every metric of every step that either run has."""
    sides = [{entry.step: entry.metrics for entry in run.entries} for run in (left, right)]
    rows = [
        [step, name, *(side.get(step, {}).get(name) for side in sides)]
        for step in sorted(set().union(*sides))
        for name in dict.fromkeys(name for side in sides for name in side.get(step, {}))
    ]
    return ["step", "metric", "A", "B"], rows
