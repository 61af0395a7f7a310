"""Reads runs from run folders, from frames and from MLflow. A run that cannot be read becomes a line in `Collection.problems`."""

import math
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mth.analysis.collection import Collection, Run, merged, without_repeats
from mth.analysis.frame import is_frame, read_frame
from mth.config.identity import identity
from mth.config.schema import Config
from mth.config.stored import from_plain
from mth.foundations.errors import UserError, first_line, require
from mth.foundations.provenance import commit_name
from mth.runs.folder import RunFolder
from mth.runs.journal import Entry, damaged_lines, read_journal
from mth.runs.lock import is_locked
from mth.runs.mlflow import default_uri, mlflow_client
from mth.runs.search import run_folders
from mth.runs.summary import Summary

LOCK_TIMEOUT_S = 10.0  # for an sqlite store that another process has locked
REASON_LENGTH = 160  # most characters of an error's message in a line about a run


def read_sources(sources: Sequence[str], uri: str | None) -> Collection:
    """The runs of folders, frames and MLflow experiments as one collection.

    uri: MLflow store of the experiments; None for multirun/mlflow.db. Raises UserError if a source has no runs.
    """
    collections = []
    for source in sources:
        if is_folder(source):
            folder = Path(source)
            collections.append(read_frame(folder) if is_frame(folder) else read_folder(folder))
            continue
        require(
            uri is not None or Path("multirun/mlflow.db").is_file(),
            f"{source} is no folder with runs of mth, and there is no multirun/mlflow.db with an experiment of that name",
        )
        collections.append(read_mlflow(source, uri or default_uri(Path("multirun"))))
    return merged(collections)


def is_folder(source: str) -> bool:
    """Whether a source is a folder and not the name of an MLflow experiment. A plain name is a folder only if that folder holds runs."""
    folder = Path(source)
    return "/" in source or source == "." or is_frame(folder) or next(run_folders(folder), None) is not None


def read_folder(folder: Path) -> Collection:
    """All runs below a folder, from their journals. Raises UserError if the folder does not exist or holds no run."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; give a folder with runs, such as multirun")
    runs, problems = [], []
    for path in run_folders(folder):
        try:
            runs.append(read_run(path, folder))
        except (UserError, OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"{path}: cannot be read ({first_line(error, REASON_LENGTH)})")
    return without_repeats(Collection(str(folder), runs, problems))


def read_run(path: Path, root: Path) -> Run:
    """One run folder; its name is its path below `root`. Raises UserError if the configuration is damaged or of another version."""
    folder = RunFolder(path)
    config, summary = folder.config(), folder.summary()
    status = "running" if is_locked(path) else summary.status or "unfinished"
    name = "." if path == root else str(path.relative_to(root))
    changed = folder.journal_file.stat().st_mtime if folder.journal_file.is_file() else 0.0
    entries = read_journal(path)
    if damaged := damaged_lines(path):
        raise ValueError(f"{folder.journal_file.name}: line {', '.join(map(str, damaged))} is damaged")
    commit = commit_name(folder.record().get("code") or {})
    return Run(name, config, identity(config), status, summary.reason or "", commit, summary, entries, path, changed)


@dataclass
class MlflowRun:
    """What MLflow holds of a run. metrics: by step."""

    name: str
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)


def read_mlflow(experiment: str, uri: str) -> Collection:
    """All runs of an MLflow experiment. Reads a local sqlite store directly, and asks a server run by run.

    Raises UserError if the store is missing, locked or does not answer, and if it has no such experiment.
    """
    local = uri.startswith("sqlite:///")
    try:
        found = _from_sqlite(experiment, Path(uri.removeprefix("sqlite:///"))) if local else _from_server(experiment, uri)
    except sqlite3.Error as error:
        raise UserError(f"MLflow store {uri} cannot be read ({error}); is it locked or not a store?") from error
    runs, problems = [], []
    for each in found:
        try:
            runs.append(_run_of(each))
        except (UserError, ValueError, KeyError) as error:
            problems.append(f"MLflow run {each.name}: cannot be read ({first_line(error, REASON_LENGTH)})")
    return without_repeats(Collection(f"MLflow experiment {experiment}", runs, problems))


def _run_of(found: MlflowRun) -> Run:
    config = from_plain(_nested(found.params))
    entries = [Entry(step, 0, metrics) for step, metrics in sorted(found.metrics.items())]
    status, reason = found.tags.get("mth.status") or "unfinished", found.tags.get("mth.reason", "")
    summary = Summary.from_json({key: int(found.params[key]) for key in ("active_parameters", "total_parameters") if key in found.params})
    return Run(found.name, config, identity(config), status, reason, found.tags.get("mth.commit", "unknown"), summary, entries)


def _from_sqlite(experiment: str, path: Path) -> list[MlflowRun]:
    if not path.is_file():
        raise UserError(f"MLflow store {path} does not exist; give a folder of runs, or tracker.uri= of the store")
    with sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=LOCK_TIMEOUT_S) as store:
        found = store.execute("SELECT experiment_id FROM experiments WHERE name = ?", (experiment,)).fetchone()
        if found is None:
            names = ", ".join(row[0] for row in store.execute("SELECT name FROM experiments"))
            raise UserError(f"{path} has no MLflow experiment {experiment}; it has {names}")
        where = "run_uuid IN (SELECT run_uuid FROM runs WHERE experiment_id = ? AND lifecycle_stage = 'active')"
        runs = {row[0]: MlflowRun(row[1] or row[0]) for row in store.execute(f"SELECT run_uuid, name FROM runs WHERE {where}", found)}
        for run, key, value in store.execute(f"SELECT run_uuid, key, value FROM params WHERE {where}", found):
            runs[run].params[key] = value
        for run, key, value in store.execute(f"SELECT run_uuid, key, value FROM tags WHERE {where}", found):
            runs[run].tags[key] = value
        query = f"SELECT run_uuid, key, value, step, is_nan FROM metrics WHERE {where} ORDER BY timestamp"
        for run, key, value, step, is_nan in store.execute(query, found):
            runs[run].metrics.setdefault(step, {})[key] = math.nan if is_nan else value  # MLflow stores a NaN as 0
    return list(runs.values())


def _from_server(experiment: str, uri: str) -> list[MlflowRun]:
    from mlflow.exceptions import MlflowException

    client = mlflow_client(uri)
    try:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            raise UserError(f"MLflow at {uri} has no experiment {experiment}")
        runs: list[MlflowRun] = []
        token = None
        while True:
            page = client.search_runs([found.experiment_id], page_token=token, max_results=200)
            for run in page:
                metrics: dict[int, dict[str, float]] = {}
                for key in run.data.metrics:
                    for metric in client.get_metric_history(run.info.run_id, key):
                        metrics.setdefault(metric.step, {})[key] = metric.value
                runs.append(MlflowRun(run.info.run_name, dict(run.data.params), dict(run.data.tags), metrics))
            token = page.token
            if not token:
                return runs
    except MlflowException as error:
        raise UserError(f"MLflow at {uri} does not answer ({first_line(error, REASON_LENGTH)})") from error


def _nested(params: dict[str, str]) -> dict[str, Any]:
    """A configuration from MLflow parameters with dotted keys. Skips parameters that are not keys of a configuration.

    A parameter without a dot may have the name of a section (`task`): it is a short form for grouping in MLflow, and is skipped as well.
    """
    result: dict[str, Any] = {}
    sections = {key.split(".")[0] for key in params if "." in key}
    for key, text in params.items():
        *parents, last = key.split(".")
        first = key.split(".")[0]
        if first not in Config.__dataclass_fields__ or (not parents and first in sections):
            continue
        place = result
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = None if text == "None" else yaml.safe_load(text) if text.startswith("[") else text
    return result
