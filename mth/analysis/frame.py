"""A report's runs in a few files, small enough to publish. They are read like any folder of runs.

runs.jsonl: one run a line, with name, status, reason, commit, counts and bytes, and the part of the configuration that enters its identity.
points.parquet: one row per (run, step, metric) with the columns of `run_table`. Holds evaluations and the reward on training prompts.
rewards.parquet: of each run's first and last evaluation, the rewards of all prompts of a task. Runs of older versions did not keep them.
gradients.parquet: of each run whose gradients a figure shows, the header, the Gram matrix and the theory, without the gradients.
shapes.json: of each model whose masks a figure compares, the shapes of its parameters, so that the figure needs no model.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from mth.analysis.collection import Collection, KeptSpectrum, Run
from mth.analysis.gram import kept_spectrum
from mth.config.identity import identity, identity_keys
from mth.config.stored import from_plain
from mth.foundations.errors import UserError
from mth.foundations.files import from_json, to_json, write_text
from mth.runs.journal import Entry
from mth.runs.metrics import REWARD
from mth.runs.summary import Summary

RUNS, POINTS, REWARDS, GRADIENTS, SHAPES = "runs.jsonl", "points.parquet", "rewards.parquet", "gradients.parquet", "shapes.json"
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
    spectra = spectra_table(runs)
    if len(spectra):
        spectra.to_parquet(folder / GRADIENTS, index=False, compression="zstd")
    shapes = {to_json(identity_keys(run.config)["model"]): run.shapes for run in runs if run.shapes}
    if shapes:
        write_text(folder / SHAPES, to_json(shapes))
    tidy[tidy["metric"].map(is_published).astype(bool)].to_parquet(folder / POINTS, index=False, compression="zstd")


def rewards_table(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per (run, step, task) of first and last evaluations: the rewards of all prompts, in fp32."""
    rows = []
    for run in runs:
        kept = [entry for entry in run.entries if entry.rewards]
        for entry in kept[:1] + kept[1:][-1:]:
            rows += [(run.name, entry.step, task, np.array(values, dtype=np.float32)) for task, values in entry.rewards.items()]
    return pd.DataFrame(rows, columns=["run", "step", "task", "rewards"])


def spectra_table(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per run with a spectrum: header and theory as JSON, steps [T], and the upper triangle of the Gram matrix [T (T + 1) / 2]."""
    rows = [
        (run.name, to_json(kept.header), kept.steps, kept.gram[np.triu_indices(len(kept.steps))], to_json(kept.theory))
        for run in runs
        if (kept := kept_spectrum(run))
    ]
    return pd.DataFrame(rows, columns=["run", "header", "steps", "gram", "theory"])


def read_spectra(path: Path) -> dict[str, KeptSpectrum]:
    """Spectra by name of the run; none without the file, as in reports of older versions."""
    if not path.is_file():
        return {}
    found = {}
    for row in pd.read_parquet(path).itertuples():
        size = len(row.steps)
        gram = np.zeros((size, size))
        gram[np.triu_indices(size)] = row.gram
        gram = np.where(np.tri(size, k=-1, dtype=bool), gram.T, gram)
        found[row.run] = KeptSpectrum(from_json(row.header), [int(step) for step in row.steps], gram, from_json(row.theory))
    return found


def is_frame(folder: Path) -> bool:
    """Whether the folder holds the files that every frame has."""
    return (folder / RUNS).is_file() and (folder / POINTS).is_file()


def read_frame(folder: Path) -> Collection:
    """The runs of a frame; they have no folder and no gradients, but what figures show of them. Raises UserError if a file is damaged or of another version."""
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
        spectra = read_spectra(folder / GRADIENTS)
        shapes = from_json((folder / SHAPES).read_text()) if (folder / SHAPES).is_file() else {}
        runs = []
        for line in lines:
            config, summary = from_plain(line["config"]), Summary.from_json(line["facts"])
            known = rewards[line["name"]]
            entries = [Entry(step, 0, values, known.get(step, {})) for step, values in sorted(metrics[line["name"]].items())]
            run = Run(line["name"], config, identity(config), line["status"], line["reason"], line["commit"], summary, entries)
            of_model = shapes.get(to_json(line["config"]["model"]), {})
            run.shapes = {name: tuple(shape) for name, shape in of_model.items()} or None
            runs.append(replace(run, spectrum=spectra.get(run.name)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} is no frame of a report ({type(error).__name__}: {error})") from error
    return Collection(str(folder), runs)
