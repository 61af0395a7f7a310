"""A report's runs in two files, small enough to publish. They are read like any folder of runs.

runs.jsonl: one run a line, with name, status, reason, commit, counts and bytes, and the part of the configuration that enters its identity.
points.parquet: one row per (run, step, metric) with the columns of `run_table`. Holds evaluations and the reward on training prompts.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mth.analysis.collection import Collection, Run
from mth.config.identity import identity, identity_keys
from mth.config.stored import from_plain
from mth.foundations.errors import UserError
from mth.foundations.files import write_text
from mth.runs.journal import Entry
from mth.runs.metrics import REWARD
from mth.runs.summary import Summary

RUNS, POINTS = "runs.jsonl", "points.parquet"
SUMMARY_KEYS = ("active_parameters", "total_parameters", "mask_sha256", "ticket_bytes", "peak_memory_bytes")


def is_published(metric: str) -> bool:
    """Whether a frame holds the metric."""
    return metric.startswith("eval/") or metric == REWARD


def write_frame(runs: Sequence[Run], tidy: pd.DataFrame, folder: Path) -> None:
    """Write both files. tidy: from `tidy_frame` of the runs."""
    lines = []
    for run in runs:
        facts = {key: value for key in SUMMARY_KEYS if (value := getattr(run.summary, key)) is not None}
        line = {"name": run.name, "status": run.status, "reason": run.reason, "commit": run.commit, "facts": facts}
        lines.append(json.dumps(line | {"config": identity_keys(run.config)}) + "\n")
    write_text(folder / RUNS, "".join(lines))
    tidy[tidy["metric"].map(is_published).astype(bool)].to_parquet(folder / POINTS, index=False, compression="zstd")


def is_frame(folder: Path) -> bool:
    """Whether the folder holds both files."""
    return (folder / RUNS).is_file() and (folder / POINTS).is_file()


def read_frame(folder: Path) -> Collection:
    """The runs of a frame; they have no folder and no gradients. Raises UserError if a file is damaged or of another version."""
    try:
        points = pd.read_parquet(folder / POINTS, columns=["run", "step", "metric", "value"])
        lines = [json.loads(line) for line in (folder / RUNS).read_text().splitlines()]
        metrics: dict[str, dict[int, dict[str, float]]] = {line["name"]: {} for line in lines}
        for name, step, metric, value in points.itertuples(index=False):
            metrics[name].setdefault(step, {})[metric] = value
        runs = []
        for line in lines:
            config, summary = from_plain(line["config"]), Summary.from_json(line["facts"])
            entries = [Entry(step, 0, values) for step, values in sorted(metrics[line["name"]].items())]
            runs.append(Run(line["name"], config, identity(config), line["status"], line["reason"], line["commit"], summary, entries))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} is no frame of a report ({type(error).__name__}: {error})") from error
    return Collection(str(folder), runs)
