"""The aggregated frame: what a report needs of its runs in two files, small enough to publish, and read like any folder of runs.

runs.jsonl: one run a line (name, status, reason, commit, configuration without places, counts and bytes).
points.parquet: one row per (run, step, metric) with the columns of `run_table`; evaluations, and the reward on training prompts.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mth.analysis.runs import Collection, Run
from mth.config import essence, from_plain, identity
from mth.errors import UserError
from mth.files import write_text
from mth.tracking import Entry

RUNS, POINTS = "runs.jsonl", "points.parquet"
FACTS = ("active_parameters", "total_parameters", "mask_sha256", "ticket_bytes", "peak_memory_bytes")


def kept(metric: str) -> bool:
    return metric.startswith("eval/") or metric == "reward/mean"


def write_frame(runs: Sequence[Run], frame: pd.DataFrame, folder: Path) -> None:
    """Write both files. frame: `tidy` of the runs."""
    lines = []
    for run in runs:
        facts = {key: run.facts[key] for key in FACTS if key in run.facts}
        line = {"name": run.name, "status": run.status, "reason": run.reason, "commit": run.commit, "facts": facts}
        lines.append(json.dumps(line | {"config": essence(run.config)}) + "\n")
    write_text(folder / RUNS, "".join(lines))
    frame[frame["metric"].map(kept).astype(bool)].to_parquet(folder / POINTS, index=False, compression="zstd")


def is_frame(folder: Path) -> bool:
    return (folder / RUNS).is_file() and (folder / POINTS).is_file()


def read_frame(folder: Path) -> Collection:
    """The runs of a frame, without gradients and folders. Raises UserError when a file is damaged or of another version."""
    try:
        points = pd.read_parquet(folder / POINTS, columns=["run", "step", "metric", "value"])
        lines = [json.loads(line) for line in (folder / RUNS).read_text().splitlines()]
        entries: dict[str, dict[int, dict[str, float]]] = {line["name"]: {} for line in lines}
        for name, step, metric, value in points.itertuples(index=False):
            entries[name].setdefault(step, {})[metric] = value
        runs = []
        for line in lines:
            config = from_plain(line["config"])
            steps = [Entry(step, 0, metrics) for step, metrics in sorted(entries[line["name"]].items())]
            runs.append(Run(line["name"], config, identity(config), line["status"], line["reason"], line["commit"], line["facts"], steps))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is no frame of a report ({type(error).__name__}: {error})") from error
    return Collection(str(folder), runs)
