"""What a report found, in sentences computed from its numbers: each has its error, and calls no difference one that is within it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mth.foundations.statistics import plus_minus

ERRORS = 2  # standard errors beyond which a difference is called one
RULE = (
    "± is one standard error, over prompts and, where there are several runs, over runs. A difference of at most two standard errors is "
    "called within its error. Errors of differences are paired over prompts where the runs kept them, and larger where not."
)


@dataclass(frozen=True)
class Answer:
    """One answer. figures: names of the figures that show it, the best one first."""

    text: str
    figures: tuple[str, ...]


def answers(levels: pd.DataFrame, metric: str) -> list[Answer]:
    """The answers of one setting. levels: from `mth.analysis.levels.levels`. metric: its name in words.

    What is missing is said or left out: full training, masks, further levels, further learning rates, tasks that were not trained.
    """
    trained, others = levels[levels["trained"].astype(bool)], levels[~levels["trained"].astype(bool)]
    rows = _rows(trained)
    if not rows:
        return []
    full, sparse = [row for row in rows if row["sparsity"] == 0], [row for row in rows if row["sparsity"] > 0]
    found = [_full_training(full[0], metric)] if full else []
    found += [_masks(max(sparse, key=lambda row: (row["runs"], -row["sparsity"])), bool(full), metric)] if sparse else []
    found += [_levels(sparse)] if full and len(sparse) > 1 else []
    found += [_rates(rows)] if len(rows) > 1 else []
    found += [_forgetting(str(task), _rows(part)) for task, part in others.groupby("task", sort=False)]
    if others.empty:
        found.append(Answer(f"Only {rows[0]['task']} was evaluated, so what training forgets was not measured.", ()))
    return found


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in table.sort_values("sparsity").to_dict("records")]


def _full_training(row: dict[str, Any], metric: str) -> Answer:
    spread = f"{row['runs']} training seeds, std {row['std']:.3f}" if row["runs"] > 1 else "one run, so its spread over seeds is not known"
    change, error = row["change"], row["change error"]
    ends = f"from {row['before']:.3f} to {row['mean']:.3f} ({spread})."
    if math.isnan(change):
        text = f"Full training ends at {metric} {plus_minus(row['mean'], row['error'])} on {row['task']} ({spread})."
    elif _clear(change, error):
        text = f"Full training {'gains' if change > 0 else 'loses'} {plus_minus(abs(change), error)} in {metric} on {row['task']}, {ends}"
    else:
        text = f"Full training changes {metric} on {row['task']} by {_change(row)}, {ends}"
    return Answer(text, ("sparsity", "masks"))


def _masks(row: dict[str, Any], compared: bool, metric: str) -> Answer:
    level, runs, collapsed = _name(row), row["runs"], row["collapsed"]
    ends = f"{metric} {plus_minus(row['mean'], row['error'])}"
    if not compared:
        who = f"{runs} random masks at {level} end at {ends} on average" if runs > 1 else f"One random mask at {level} ends at {ends}"
        text = f"{who}. Full training is not among the runs, so there is nothing to compare with."
    elif runs > 1:
        text = (
            f"{row['successes']:.0f} of {runs} random masks at {level} reach full training minus one std of the masks ({row['threshold']:.3f}). "
            f"On average they end {_against_full(row)}."
        )
    else:
        text = f"The one random mask at {level} ends at {ends}, {_against_full(row)}."
    if collapsed:
        text += f" {collapsed} of them collapsed." if runs > 1 else " It collapsed."
    return Answer(text, ("masks", "sparsity"))


def _levels(sparse: list[dict[str, Any]]) -> Answer:
    known = [row for row in sparse if not math.isnan(row["to full error"])]
    if not known:
        text = (
            f"Against full training: {_signed(sparse, 'to full')}. The errors are not known, because these runs did not keep their prompts."
        )
        return Answer(text, ("sparsity",))
    below, above, within = _compared(known)
    least = min((row["sparsity"] for row in below), default=math.inf)
    until = [row for row in known if row["sparsity"] < least]
    if len(below) == len(known):
        parts = [f"Every level is below full training: {_sizes(below)}."]
    else:
        if until:
            parts = [f"Down to {_name(until[-1])} no level is below full training beyond its error."]
        else:
            parts = [f"Already the least sparse level, {_name(below[0])}, is below full training."]
        parts += [f"Within their error of it: {_signed(within, 'to full')}."] * bool(within)
        parts += [f"Below it: {_sizes(below)}."] * bool(below)
    parts += [f"Above it: {_sizes(above)}."] * bool(above)
    nothing = [row for row in sparse if not _learned(row)]
    parts += [f"No gain beyond its error: {_signed(nothing, 'change')}."] * bool(nothing)
    return Answer(" ".join(parts), ("sparsity",))


def _rates(rows: list[dict[str, Any]]) -> Answer:
    figures = ("learning_rates", "sparsity")
    compared = [row for row in rows if len(row["tried"]) > 1]
    if len(compared) < 2:
        text = f"The learning rates are {_rate_list(rows)}. They were not varied at two levels, so whether the best one grows was not measured."
        return Answer(text, figures)
    learned = [row for row in compared if _learned(row)]
    if len(learned) < 2:
        return Answer(f"The best learning rates are {_rate_list(compared)}. Fewer than two levels learned, so these say nothing.", figures)
    rates = [row["rate"] for row in learned]
    if len(set(rates)) == 1:
        verdict = "is the same at every sparsity"
    elif rates == sorted(rates):
        verdict = "grows with sparsity"
    else:
        verdict = "does not grow steadily with sparsity"
    steps = [right / left for row in learned for left, right in zip(row["tried"], row["tried"][1:], strict=False)]
    parts = [f"The best learning rate {verdict}: {_rate_list(learned)}. The rates that were tried are a factor of {_range(steps)} apart."]
    for place, word in ((-1, "highest"), (0, "lowest")):
        edge = [_name(row) for row in learned if row["rate"] == row["tried"][place]]
        parts += [f"The best is the {word} that was tried for {', '.join(edge)}, so {word[:-3]}er ones may be better."] * bool(edge)
    left_out = [_name(row) for row in rows if row not in learned]
    parts += [f"Left out, for lack of a gain or of a second rate: {', '.join(left_out)}."] * bool(left_out)
    return Answer(" ".join(parts), figures)


def _forgetting(task: str, rows: list[dict[str, Any]]) -> Answer:
    figures = ("forgetting", "sparsity")
    measured = [row for row in rows if not math.isnan(row["change"])]
    if not measured:
        return Answer(f"{task} was not trained. It was evaluated only once in a run, so its change is not known.", figures)
    full, sparse = [row for row in measured if row["sparsity"] == 0], [row for row in measured if row["sparsity"] > 0]
    known = [row for row in sparse if not math.isnan(row["to full error"])]
    if not full or not known:
        each = ", ".join(f"{_name(row)} {_change(row)}" for row in measured)
        return Answer(f"{task} was not trained. Change by training: {each}.", figures)
    parts = [f"{task} was not trained. Full training changes it by {_change(full[0])}."]
    lower, higher, within = _compared(known)
    parts += [f"Sparse runs end lower than full training: {_sizes(lower)}."] * bool(lower)
    parts += ["No sparse level ends lower than full training beyond its error."] * (not lower)
    parts += [f"Higher: {_sizes(higher)}."] * bool(higher)
    parts += [f"Within their error of it: {_signed(within, 'to full')}."] * bool(within)
    return Answer(" ".join(parts), figures)


def _compared(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """The levels below full training, above it, and those whose difference is within its error."""
    clear = [row for row in rows if _clear(row["to full"], row["to full error"])]
    return (
        [row for row in clear if row["to full"] < 0],
        [row for row in clear if row["to full"] > 0],
        [row for row in rows if row not in clear],
    )


def _clear(difference: float, error: float) -> bool:
    """Whether a difference is known to be beyond its error. A difference without a known error is not."""
    return abs(difference) > ERRORS * error and not math.isnan(error)


def _learned(row: dict[str, Any]) -> bool:
    """Whether a level gained beyond its error; of a change with an unknown error, whether it is positive."""
    if math.isnan(row["change"]):
        return True
    return bool(row["change"] > 0 and (math.isnan(row["change error"]) or _clear(row["change"], row["change error"])))


def _against_full(row: dict[str, Any]) -> str:
    """Where a level ends, as `0.048 ± 0.010 below full training`."""
    difference, error = row["to full"], row["to full error"]
    if math.isnan(error):
        return f"{plus_minus(difference, error, '+')} from full training (the error is not known)"
    if _clear(difference, error):
        return f"{plus_minus(abs(difference), error)} {'below' if difference < 0 else 'above'} full training"
    return f"within the error of full training ({plus_minus(difference, error, '+')})"


def _change(row: dict[str, Any]) -> str:
    """A change in words, as `-0.041 ± 0.011`, or `+0.003 ± 0.010 (within its error)`."""
    value, error = row["change"], row["change error"]
    return plus_minus(value, error, "+") + (
        " (error not known)" if math.isnan(error) else "" if _clear(value, error) else " (within its error)"
    )


def _sizes(rows: Sequence[dict[str, Any]]) -> str:
    """Distances from full training, as `99 % by 0.048 ± 0.010, 99.9 % by 0.119 ± 0.014`."""
    return ", ".join(f"{_name(row)} by {plus_minus(abs(row['to full']), row['to full error'])}" for row in rows)


def _signed(rows: Sequence[dict[str, Any]], column: str) -> str:
    """A difference of each row, as `99 % +0.003 ± 0.010, 99.5 % -0.002 ± 0.011`."""
    return ", ".join(f"{_name(row)} {plus_minus(row[column], row[f'{column} error'], '+')}" for row in rows)


def _rate_list(rows: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"{row['rate']:g} {'for' if row['sparsity'] == 0 else 'at'} {_name(row)}" for row in rows)


def _name(row: dict[str, Any]) -> str:
    return "full training" if row["sparsity"] == 0 else f"{row['sparsity']:g} %"


def _range(values: Sequence[float]) -> str:
    """Positive numbers as `3`, or as `2 to 5`."""
    low, high = f"{min(values):.2g}", f"{max(values):.2g}"
    return low if low == high else f"{low} to {high}"
