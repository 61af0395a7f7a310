"""Finished, failed and half-finished runs of a folder or of an MLflow experiment, as they are: nothing is dropped silently."""

import math
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mth.config import Config, from_plain, identity, read_config
from mth.errors import UserError
from mth.files import read_json
from mth.provenance import commit_name
from mth.runs import DONE, is_locked
from mth.tracking import JOURNAL, Entry, mlflow_client, read_journal

PATIENCE_S = 10.0  # for a store that another process has locked
NOT_RUNS = {"code", "checkpoints", "base", "spectrum", "report", "mlartifacts"}


@dataclass
class Run:
    """One run. status: finished, collapsed, failed, interrupted, running, or unfinished (ended without a word). entries: its metrics."""

    name: str
    config: Config
    identity: str
    status: str
    reason: str
    commit: str
    facts: dict[str, Any]
    entries: list[Entry]
    path: Path | None = None
    changed: float = 0.0

    @property
    def done(self) -> bool:
        return self.status in DONE


@dataclass
class Collection:
    """source: what was read. problems: one line for each run that could not be read. repeats: identity -> folders beside the one shown."""

    source: str
    runs: list[Run]
    problems: list[str] = field(default_factory=list)
    repeats: dict[str, list[str]] = field(default_factory=dict)


def read_folder(folder: Path) -> Collection:
    """All runs below a folder, from their journals. Raises UserError when the folder does not exist or holds none."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; give a folder with runs, such as multirun")
    runs, problems = [], []
    for path in run_folders(folder):
        try:
            runs.append(read_run(path, folder))
        except (UserError, OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"{path}: cannot be read ({_first_line(error)})")
    return _checked(Collection(str(folder), runs, problems))


def run_folders(folder: Path) -> Iterator[Path]:
    """Folders below `folder` (or itself) with a configuration and a journal, in order; frozen code and checkpoints are not looked into."""
    for place, inner, files in os.walk(folder):
        inner[:] = sorted(name for name in inner if name not in NOT_RUNS)
        if "config.yaml" in files and ("journal.jsonl" in files or "run.json" in files or "summary.json" in files):
            yield Path(place)


def read_run(path: Path, root: Path) -> Run:
    """One run folder. Raises UserError for a configuration that is damaged or of another version."""
    config = read_config(path / "config.yaml")
    summary, run = read_json(path / "summary.json"), read_json(path / "run.json")
    status = "running" if is_locked(path) else summary.get("status") or "unfinished"
    name = "." if path == root else str(path.relative_to(root))
    changed = (path / "journal.jsonl").stat().st_mtime if (path / "journal.jsonl").is_file() else 0.0
    entries = read_journal(path)
    _check_numbers(entries)
    commit = commit_name(run.get("code") or {})
    return Run(name, config, identity(config), status, summary.get("reason") or "", commit, summary, entries, path, changed)


def _check_numbers(entries: list[Entry]) -> None:
    """Raise ValueError unless every entry is a whole step with numbers."""
    for entry in entries:
        sound = type(entry.step) is int and isinstance(entry.metrics, dict)
        if not sound or not all(isinstance(value, int | float) for value in entry.metrics.values()):
            raise ValueError(f"{JOURNAL} has a line that is not a step with numbers, step {entry.step!r}")


def read_mlflow(experiment: str, uri: str) -> Collection:
    """All runs of an MLflow experiment. A local sqlite store is read in one query; a server is asked run by run.

    Raises UserError when the store is missing, locked or does not answer, and when it has no such experiment.
    """
    try:
        rows = (
            _from_sqlite(experiment, Path(uri.removeprefix("sqlite:///")))
            if uri.startswith("sqlite:///")
            else _from_server(experiment, uri)
        )
    except sqlite3.Error as error:
        raise UserError(f"MLflow store {uri} cannot be read ({error}); is it locked or not a store?") from error
    runs, problems = [], []
    for name, params, tags, points in rows:
        try:
            config = from_plain(_nested(params))
            entries = [Entry(step, 0, metrics) for step, metrics in sorted(points.items())]
            status = tags.get("mth.status") or "unfinished"
            facts: dict[str, Any] = {key: int(params[key]) for key in ("active_parameters", "total_parameters") if key in params}
            runs.append(
                Run(name, config, identity(config), status, tags.get("mth.reason", ""), tags.get("mth.commit", "unknown"), facts, entries)
            )
        except (UserError, ValueError, KeyError) as error:
            problems.append(f"MLflow run {name}: cannot be read ({_first_line(error)})")
    return _checked(Collection(f"MLflow experiment {experiment}", runs, problems))


MlflowRow = tuple[str, dict[str, str], dict[str, str], dict[int, dict[str, float]]]


def _from_sqlite(experiment: str, path: Path) -> list[MlflowRow]:
    if not path.is_file():
        raise UserError(f"MLflow store {path} does not exist; give a folder of runs, or tracker.uri= of the store")
    with sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=PATIENCE_S) as store:
        found = store.execute("SELECT experiment_id FROM experiments WHERE name = ?", (experiment,)).fetchone()
        if found is None:
            names = ", ".join(row[0] for row in store.execute("SELECT name FROM experiments"))
            raise UserError(f"{path} has no MLflow experiment {experiment}; it has {names}")
        here = "run_uuid IN (SELECT run_uuid FROM runs WHERE experiment_id = ? AND lifecycle_stage = 'active')"
        result: dict[str, MlflowRow] = {
            row[0]: (row[1] or row[0], {}, {}, {}) for row in store.execute(f"SELECT run_uuid, name FROM runs WHERE {here}", found)
        }
        for number, table in ((1, "params"), (2, "tags")):
            for run, key, value in store.execute(f"SELECT run_uuid, key, value FROM {table} WHERE {here}", found):
                result[run][number][key] = value  # type: ignore[index]
        for run, key, value, step, is_nan in store.execute(
            f"SELECT run_uuid, key, value, step, is_nan FROM metrics WHERE {here} ORDER BY timestamp", found
        ):
            result[run][3].setdefault(step, {})[key] = math.nan if is_nan else value  # a NaN is kept as 0
    return list(result.values())


def _from_server(experiment: str, uri: str) -> list[MlflowRow]:
    from mlflow.exceptions import MlflowException

    client = mlflow_client(uri)
    try:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            raise UserError(f"MLflow at {uri} has no experiment {experiment}")
        rows: list[MlflowRow] = []
        token = None
        while True:
            page = client.search_runs([found.experiment_id], page_token=token, max_results=200)
            for run in page:
                points: dict[int, dict[str, float]] = {}
                for key in run.data.metrics:
                    for metric in client.get_metric_history(run.info.run_id, key):
                        points.setdefault(metric.step, {})[key] = metric.value
                rows.append((run.info.run_name, dict(run.data.params), dict(run.data.tags), points))
            token = page.token
            if not token:
                return rows
    except MlflowException as error:
        raise UserError(f"MLflow at {uri} does not answer ({_first_line(error)})") from error


def _nested(params: dict[str, str]) -> dict[str, Any]:
    """The inverse of flat parameters; keys without a dot that name a section are the short ones that people group by."""
    result: dict[str, Any] = {}
    sections = {key.split(".")[0] for key in params if "." in key}
    known = set(Config.__dataclass_fields__)
    for key, text in params.items():
        first, *rest = key.split(".")
        if first not in known or (not rest and first in sections):
            continue
        place = result
        for part in key.split(".")[:-1]:
            place = place.setdefault(part, {})
        place[key.split(".")[-1]] = None if text == "None" else yaml.safe_load(text) if text.startswith("[") else text
    return result


def merged(collections: Sequence[Collection]) -> Collection:
    """Several sources as one: a run that more than one of them has counts once, by the first."""
    if len(collections) == 1:
        return collections[0]
    all_of = Collection(", ".join(each.source for each in collections), [run for each in collections for run in each.runs])
    for each in collections:
        all_of.problems += each.problems
        for name, others in each.repeats.items():
            all_of.repeats.setdefault(name, []).extend(others)
    return _checked(all_of)


def _checked(collection: Collection) -> Collection:
    """One run per identity: the one that is done, else the one that got furthest, else the newest; the others are named as repeats.

    Runs of one name, as MLflow may have them, get their identity behind it.
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


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
