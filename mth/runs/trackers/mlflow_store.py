"""MLflow's stores: addresses, the sqlite file beside the runs, experiments, and what to type to look at them."""

import os
import re
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from mth.foundations.errors import UserError
from mth.foundations.locks import hold

TURN_S = 30.0  # longest wait for other processes of mth that write to the same sqlite file, in seconds
TURN_POLL_S = 0.02
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",  # a kept connection would write into a file that was deleted
}
CLASSIC = "?workflowType=machine_learning"  # MLflow's pages for training, and not those for conversations


def default_uri(root: Path) -> str:
    """The sqlite store beside the runs."""
    return f"sqlite:///{(root / 'mlflow.db').resolve()}"


def sqlite_file(uri: str) -> Path | None:
    """The absolute path of an sqlite store; None for a server or another database. Reads `?timeout=60` and relative paths as SQLAlchemy does."""
    if not uri.startswith("sqlite"):
        return None
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
    except ArgumentError:
        return None
    named = url.database not in (None, "", ":memory:") and not str(url.database).startswith("file:")
    return Path(os.path.abspath(str(url.database))) if url.get_backend_name() == "sqlite" and named else None


def absolute(uri: str) -> str:
    """The same address with an absolute path, if it is an sqlite store."""
    path = sqlite_file(uri)
    if path is None:
        return uri
    from sqlalchemy.engine import make_url

    return make_url(uri).set(database=str(path)).render_as_string(hide_password=False)


def without_password(uri: str) -> str:
    """An address that may be printed and stored."""
    return re.sub(r"(?<=://)([^/@\s]*):[^/\s]*@", r"\1:***@", uri)


def mlflow_client(uri: str) -> Any:
    """An MlflowClient that gives up quickly on a dead server and reports nothing to anyone."""
    return _load_mlflow()(tracking_uri=absolute(uri))


def _load_mlflow() -> Any:
    """MLflow's client class."""
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    import logging

    from mlflow import MlflowClient

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # it prints a traceback for an error that it raises anyway
    return MlflowClient


@contextmanager
def turn(uri: str) -> Iterator[None]:
    """Within, no other process of mth writes to this sqlite store: with many writers, sqlite starves some until they fail.

    A server needs no turns. After TURN_S the turn comes anyway: its holder may be stopped.
    """
    path = sqlite_file(uri)
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = hold(path.with_name(f".{path.name}.lock"), TURN_S, TURN_POLL_S)
    except UserError:  # a link in the lock's place, or a file system without locks
        handle = None
    with handle or nullcontext():
        yield


def prepare_store(uri: str, experiment: str) -> str:
    """Id of the experiment, created if need be, in a store that many processes may open at once.

    Builds a new sqlite file under a temporary name, with the turn held, and renames it: processes that create one store at once would break it.
    A file without tables, as a deleted store leaves it, is replaced.
    """
    path = sqlite_file(uri)
    if path is None:
        return _experiment_id(mlflow_client(uri), experiment, None)
    artifacts = (path.parent / "mlartifacts").as_uri()
    _load_mlflow()  # takes seconds, for which nobody should wait
    with turn(uri):
        if not _has_tables(path):
            fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
            try:
                _experiment_id(mlflow_client(f"sqlite:///{fresh}"), experiment, artifacts)
                os.replace(fresh, path)
            finally:
                fresh.unlink(missing_ok=True)
        return _experiment_id(mlflow_client(uri), experiment, artifacts)


def _has_tables(path: Path) -> bool:
    """Whether an sqlite file exists and holds anything. What is no sqlite file counts as full: it is not ours to replace."""
    if not path.is_file():
        return False
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as store:
            return bool(store.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone())
    except sqlite3.Error:
        return True


def _experiment_id(client: Any, name: str, artifacts: str | None) -> str:
    """A deleted experiment keeps its name in MLflow, and what somebody deleted is not brought back: the next free name is taken."""
    from mlflow.exceptions import MlflowException

    number, free = 1, name
    while True:
        found = client.get_experiment_by_name(free)
        if found is None:
            try:
                place = artifacts and f"{artifacts}/{free}"
                return client.create_experiment(free, artifact_location=place, tags={"mlflow.experimentKind": "custom_model_development"})
            except MlflowException:  # another process was quicker
                found = client.get_experiment_by_name(free)
                if found is None:
                    raise
        if found.lifecycle_stage == "active":
            return found.experiment_id
        number, free = number + 1, f"{name}-{number + 1}"


def ui_command(uri: str) -> str | None:
    """What to type to start MLflow's pages, with the interpreter that has MLflow; None if a server shows them already."""
    if uri.startswith("http"):
        return None
    python = os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else sys.executable
    return f"{python} -m mlflow ui --host 127.0.0.1 --backend-store-uri {absolute(uri)}"


def ui_link(uri: str, experiment: str, run: str | None = None) -> str:
    """The page with an experiment's runs, or of one run, once MLflow's pages are up. experiment, run: their ids."""
    address = without_password(uri).rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
    return f"{address}/#/experiments/{experiment}/runs{f'/{run}' if run else ''}{CLASSIC}"
