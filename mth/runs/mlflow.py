"""MLflow: the same metrics as the journal, sent in the background. No step waits for it; what it missed is sent again from the journal."""

import fcntl
import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any

from mth.config.choices import TrackerName
from mth.config.identity import PLACES, identity
from mth.config.schema import Config
from mth.config.stored import flat, to_plain
from mth.foundations.errors import first_line
from mth.foundations.files import read_json, write_json
from mth.foundations.provenance import commit_name
from mth.runs.folder import RunFolder
from mth.runs.journal import Entry, Journal

OF_A_START = frozenset(key for key in PLACES if "." not in key)  # MLflow refuses parameters that change
MLFLOW_STATUS = {"finished": "FINISHED", "collapsed": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


CLOSE_TIMEOUT_S = 60.0


RETRY_S = 30.0


def default_uri(root: Path) -> str:
    """The sqlite store beside the runs."""
    return f"sqlite:///{(root / 'mlflow.db').resolve()}"


def ui_command(uri: str) -> str:
    """What to type to see the runs, with the interpreter that has MLflow."""
    if uri.startswith("http"):
        return f"open {uri}"
    python = os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else sys.executable
    return f"{python} -m mlflow ui --host 127.0.0.1 --backend-store-uri {uri}"


def mlflow_client(uri: str) -> Any:
    """An MlflowClient that gives up quickly on a dead server and reports nothing to anyone."""
    for key, value in {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }.items():
        os.environ.setdefault(key, value)
    import logging

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def prepare_store(uri: str, experiment: str) -> str:
    """Id of the experiment, created if need be, in a store that many processes may open at once.

    Builds a new sqlite file under a temporary name, with a lock held, and renames it: processes that create one store at once would break it.
    """
    if not uri.startswith("sqlite:///"):
        return _experiment_id(mlflow_client(uri), experiment, None)
    database = Path(uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    artifacts = (database.parent / "mlartifacts").as_uri()
    if not database.exists():
        with open(database.with_name(f".{database.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not database.exists():
                fresh = database.with_name(f".{database.name}.{os.getpid()}.new")
                _experiment_id(mlflow_client(f"sqlite:///{fresh}"), experiment, artifacts)
                os.replace(fresh, database)
    return _experiment_id(mlflow_client(uri), experiment, artifacts)


def _experiment_id(client: Any, name: str, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=artifacts and f"{artifacts}/{name}")
        except MlflowException:  # another process was quicker
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return found.experiment_id


def run_tags(run_dir: Path, root: Path, grid: Path | None) -> dict[str, str]:
    """Tags for the MLflow UI: folder, commit of the code that ran, and `sweep`, the name of the grid, to filter and group by."""
    tags = {"mth.run_dir": str(run_dir), "mth.commit": commit_name(RunFolder(run_dir).record().get("code") or {})}
    if grid is None:
        return tags
    return tags | {"sweep": str(grid.relative_to(root)) if grid.is_relative_to(root) else grid.name}


def run_parameters(config: Config, facts: dict[str, Any]) -> dict[str, str]:
    """Flat parameters, with short names for what people group by."""
    short = {
        "model": config.model.name,
        "task": config.task.name,
        "sparsity": config.sparsity.percent,
        "lr": config.lr.value,
        "algorithm": f"{config.algorithm.advantage.name}-{config.algorithm.ratio.name}",
    }
    data = {key: value for key, value in flat(to_plain(config)).items() if key not in OF_A_START}
    return {key: str(value)[:500] for key, value in (data | short | facts).items()}


class MlflowWriter:
    """A thread that sends journal entries to MLflow, and what it could not send once more at the end.

    Its state in the run folder is `mlflow.json` with the MLflow run id, so that a resumed run continues the same MLflow run.
    """

    def __init__(self, config: Config, uri: str, run_dir: Path, facts: dict[str, Any], tags: dict[str, str], known: list[Entry]) -> None:
        self.config, self.uri, self.run_dir, self.facts, self.tags = config, uri, run_dir, facts, tags
        self.inbox: queue.Queue[Entry | None] = queue.Queue()
        self.status = "FINISHED"
        self.problem: str | None = None
        self.client: Any = None
        self.run_id = ""
        self.unsent = list(known)
        self.thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self.thread.start()

    def send(self, entry: Entry) -> None:
        """Queue an entry; returns at once."""
        self.inbox.put(entry)

    def close(self, status: str, tags: dict[str, str]) -> str | None:
        """Send what is left and set the status; None, or one line that says what did not arrive."""
        self.status = status
        self.tags |= tags
        self.inbox.put(None)
        self.thread.join(CLOSE_TIMEOUT_S)
        if self.thread.is_alive():
            self.problem = f"no answer within {CLOSE_TIMEOUT_S:.0f} s"
        return (
            self.problem
            and f"MLflow at {self.uri} did not take everything ({self.problem}); nothing is lost: the journal in {self.run_dir} has it"
        )

    def _work(self) -> None:
        paused_until = 0.0
        while True:
            entry = self.inbox.get()
            if entry is not None:
                self.unsent.append(entry)
            if entry is None or time.monotonic() >= paused_until:
                try:
                    self._send_all(final=entry is None)
                    self.problem = None
                except Exception as error:  # whatever the server or its client raises must not end the training run
                    self.problem = first_line(error, 160)
                    paused_until = time.monotonic() + RETRY_S
            if entry is None:
                return

    def _send_all(self, final: bool) -> None:
        if self.client is None:
            self._start()
        from mlflow.entities import Metric, RunTag

        while self.unsent:
            entry = self.unsent[0]
            metrics = [Metric(key, value, entry.time, entry.step) for key, value in entry.metrics.items()]
            self.client.log_batch(self.run_id, metrics=metrics)
            self.unsent.pop(0)
        if final:
            self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in self.tags.items()])
            self.client.set_terminated(self.run_id, self.status)

    def _start(self) -> None:
        from mlflow.entities import Param, RunTag

        experiment = prepare_store(self.uri, self.config.tracker.experiment)
        client = mlflow_client(self.uri)
        state = RunFolder(self.run_dir).mlflow_file
        saved = read_json(state)
        others = saved.get("others", {})  # stores that `mth.grid sync` sent the run to as well
        self.run_id = saved["run_id"] if saved.get("uri") == self.uri else others.get(self.uri, "")
        if self.run_id:
            client.update_run(self.run_id, status="RUNNING")
        else:
            run = client.create_run(experiment, run_name=self.config.label, tags={"mth.identity": identity(self.config)})
            self.run_id = run.info.run_id
            main = {"uri": self.uri, "run_id": self.run_id}
            write_json(state, saved | {"others": others | {self.uri: self.run_id}} if saved else main)
        if not client.get_run(self.run_id).data.params:
            params = [Param(key, value) for key, value in run_parameters(self.config, self.facts).items()]
            client.log_batch(self.run_id, params=params, tags=[RunTag(key, value) for key, value in self.tags.items()])
        self.client = client


class Tracker:
    """The journal, and MLflow behind it unless `tracker.name` is none."""

    def __init__(self, config: Config, run_dir: Path, root: Path, last_step: int, facts: dict[str, Any], tags: dict[str, str]) -> None:
        self.journal = Journal(run_dir, last_step)
        self.uri = config.tracker.uri or default_uri(root)
        self.writer = None
        if config.tracker.name is TrackerName.mlflow:
            self.writer = MlflowWriter(config, self.uri, run_dir, facts, tags, self.journal.entries)

    def log(self, step: int, metrics: dict[str, float], rewards: dict[str, list[float]] | None = None) -> None:
        """Journal first, then MLflow's queue. rewards: see `Entry`."""
        entry = self.journal.append(step, metrics, rewards)
        if self.writer is not None:
            self.writer.send(entry)

    def close(self, status: str, tags: dict[str, str]) -> None:
        """status: MLflow's word for how the run ended. A tracking problem is one line on stderr."""
        if self.writer is not None:
            problem = self.writer.close(status, tags)
            if problem:
                print(f"warning: {problem}", file=sys.stderr)
