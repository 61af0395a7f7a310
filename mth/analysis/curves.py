"""The curves of one run: which metrics share a panel, and their values."""

from collections.abc import Sequence
from typing import Any

from mth.analysis.glance import Glance
from mth.foundations.errors import require
from mth.runs.journal import Entry
from mth.runs.metrics import ENTROPY, EVAL_REWARD, PASS_AT_1, PHASES, REWARD, TRUNCATED, eval_metric, meaning, with_error

Panel = dict[str, Any]  # title, note, stacked, series: [{metric, label, error}]


def metric_panels(run: Glance, metric: str) -> tuple[list[Panel], list[Panel]]:
    """The panels of a run that everyone looks at, and those of its other metrics, one each.

    metric: of evaluations, for the first panel. Raises UserError if the run has evaluations, and none of them has it.
    """
    names = {name for entry in run.entries for name in entry.metrics}
    tasks = run.tasks
    known = {name.split("/", 2)[2] for name in names if name.startswith("eval/")}
    require(not known or metric in known, f"--metric {metric}: no evaluation has it; there is {', '.join(sorted(known))}")
    title = "pass@1" if metric == PASS_AT_1 else metric
    wanted = [
        (f"{title} on evaluation prompts", [(eval_metric(task, metric), task) for task in tasks]),
        ("Reward", [(REWARD, "training"), *((eval_metric(task, EVAL_REWARD), f"evaluation, {task}") for task in tasks)]),
        ("Entropy in nats per token", [(ENTROPY, "policy")]),
        ("KL divergence in nats per token", [("kl/rollout", "from the engine"), ("kl/reference", "from the base model")]),
        (
            "Length in tokens",
            [
                ("completion/tokens_mean", "training, mean"),
                ("completion/tokens_max", "training, longest"),
                *((eval_metric(task, "completion_tokens"), f"evaluation, {task}") for task in tasks),
            ],
        ),
        ("Seconds per phase", [(f"seconds/{phase}", phase) for phase in PHASES]),
        (
            "Shares",
            [
                (f"completion/{TRUNCATED}", "cut off"),
                ("groups/no_signal_share", "groups of equal rewards"),
                ("ratio/limited_share", "tokens with a limited ratio"),
            ],
        ),
        ("Norms", [("grad_norm", "gradient"), ("update_norm", "update")]),
        ("Tokens per second", [("tokens_per_second", "sampled")]),
    ]
    panels = [_panel(title, lines, names) for title, lines in wanted]
    panels = [panel for panel in panels if panel["series"]]
    used = {name for panel in panels for line in panel["series"] for name in (line["metric"], line["error"])}
    errors = {with_error(name) for name in names}
    more = [_panel(name, [(name, name.split("/")[-1])], names) for name in sorted(names - used - errors)]
    return panels, more


def _panel(title: str, lines: Sequence[tuple[str, str]], names: set[str]) -> Panel:
    """A panel of those metrics that the run has, each with its standard error if it has one."""
    series = [
        {"metric": name, "label": label, "error": with_error(name) if with_error(name) in names else None}
        for name, label in lines
        if name in names
    ]
    meanings = {label: meaning(name) for name, label in lines if name in names}
    note = "; ".join(f"{label}: {said}" for label, said in meanings.items() if said)
    return {"title": title, "note": note, "stacked": title.startswith("Seconds"), "series": series}


def packed(entries: Sequence[Entry]) -> dict[str, Any]:
    """Every metric as (number of its axis, values); axes are lists of steps that metrics share. Values have six digits."""
    axes: dict[tuple[int, ...], int] = {}
    metrics = {}
    for name in dict.fromkeys(name for entry in entries for name in entry.metrics):
        points = [(entry.step, entry.metrics[name]) for entry in entries if name in entry.metrics]
        steps, values = zip(*points, strict=True)
        metrics[name] = axes.setdefault(steps, len(axes)), [float(f"{value:.6g}") for value in values]
    return {"axes": list(axes) or [[0]], "metrics": metrics}
