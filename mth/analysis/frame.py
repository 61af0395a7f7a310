"""A report's runs in three files, small enough to publish. They are read like any folder of runs.

runs.jsonl: one run a line, with name, status, reason, commit, counts and bytes, and the part of the configuration that enters its identity.
points.parquet: one row per (run, step, metric) with the columns of `run_table`. Holds evaluations and the reward on training prompts.
rewards.parquet: of each run's first and last evaluation, the rewards of all prompts of a task. Runs of older versions did not keep them.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mth.analysis.collection import Collection, Run
from mth.config.identity import identity, identity_keys
from mth.config.stored import from_plain
from mth.foundations.errors import UserError
from mth.foundations.files import from_json, to_json, write_text
from mth.runs.journal import Entry
from mth.runs.metrics import REWARD
from mth.runs.summary import Summary

RUNS, POINTS, REWARDS = "runs.jsonl", "points.parquet", "rewards.parquet"
SUMMARY_KEYS = ("active_parameters", "total_parameters", "mask_sha256", "ticket_bytes", "peak_memory_bytes")


def is_published(metric: str) -> bool:
    """Whether a frame holds the metric."""
    return metric.startswith("eval/") or metric == REWARD


def write_frame(runs: Sequence[Run], tidy: pd.DataFrame, folder: Path) -> None:
    """Write the files. tidy: from `tidy_frame` of the runs."""
    lines = []
    for run in runs:
        facts = {key: value for key in SUMMARY_KEYS if (value := getattr(run.summary, key)) is not None}
        line = {"name": run.name, "status": run.status, "reason": run.reason, "commit": run.commit, "facts": facts}
        lines.append(to_json(line | {"config": identity_keys(run.config)}) + "\n")
    write_text(folder / RUNS, "".join(lines))
    rewards = rewards_table(runs)
    if len(rewards):
        rewards.to_parquet(folder / REWARDS, index=False, compression="zstd")
    tidy[tidy["metric"].map(is_published).astype(bool)].to_parquet(folder / POINTS, index=False, compression="zstd")


def rewards_table(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per (run, step, task) of first and last evaluations: the rewards of all prompts, in fp32."""
    rows = []
    for run in runs:
        kept = [entry for entry in run.entries if entry.rewards]
        for entry in kept[:1] + kept[1:][-1:]:
            rows += [(run.name, entry.step, task, np.array(values, dtype=np.float32)) for task, values in entry.rewards.items()]
    return pd.DataFrame(rows, columns=["run", "step", "task", "rewards"])


def is_frame(folder: Path) -> bool:
    """Whether the folder holds the files that every frame has."""
    return (folder / RUNS).is_file() and (folder / POINTS).is_file()


def read_frame(folder: Path) -> Collection:
    """The runs of a frame; they have no folder and no gradients. Raises UserError if a file is damaged or of another version."""
    try:
        points = pd.read_parquet(folder / POINTS, columns=["run", "step", "metric", "value"])
        lines = [from_json(line) for line in (folder / RUNS).read_text().splitlines()]
        metrics: dict[str, dict[int, dict[str, float]]] = {line["name"]: {} for line in lines}
        for name, step, metric, value in points.itertuples(index=False):
            metrics[name].setdefault(step, {})[metric] = value
        rewards: dict[str, dict[int, dict[str, list[float]]]] = {line["name"]: {} for line in lines}
        if (folder / REWARDS).is_file():
            for name, step, task, values in pd.read_parquet(folder / REWARDS).itertuples(index=False):
                rewards[name].setdefault(step, {})[task] = [float(value) for value in values]
        runs = []
        for line in lines:
            config, summary = from_plain(line["config"]), Summary.from_json(line["facts"])
            known = rewards[line["name"]]
            entries = [Entry(step, 0, values, known.get(step, {})) for step, values in sorted(metrics[line["name"]].items())]
            runs.append(Run(line["name"], config, identity(config), line["status"], line["reason"], line["commit"], summary, entries))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} is no frame of a report ({type(error).__name__}: {error})") from error
    return Collection(str(folder), runs)
