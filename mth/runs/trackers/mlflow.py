"""A run in MLflow. Its ids are in the run folder's `mlflow.json`, so that a resumed run continues the same MLflow run."""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from mth.config.stored import to_yaml
from mth.foundations.files import read_json, write_json
from mth.runs.journal import Entry
from mth.runs.trackers.mlflow_store import default_uri, mlflow_client, prepare_store, sqlite_file, turn, without_password
from mth.runs.trackers.record import TAG_LENGTH, TrackedRun, shown_samples
from mth.runs.trackers.writer import Ending

STATUS = {"finished": "FINISHED", "collapsed": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
METRICS_A_CALL = 1000  # MLflow takes no more
TAGS_A_CALL = 100
SAMPLE_COLUMNS = ("step", "reward", "reply", "truth", "prompt", "task", "uid", "stop", "tokens")


class MlflowBackend:
    """See `Backend`. A run that the store no longer has, or that was deleted, is made again and gets everything."""

    def __init__(self, run: TrackedRun, uri: str | None = None) -> None:
        self.run, self.uri = run, uri or run.config.tracker.uri or default_uri(run.root)
        self.place = f"MLflow at {without_password(self.uri)}"
        self.patience_s = 60.0 if sqlite_file(self.uri) is None else 300.0  # many processes may wait for their turn
        self.client: Any = None
        self.run_id = ""

    def open(self, entries: Sequence[Entry]) -> bool:
        experiment = prepare_store(self.uri, self.run.config.tracker.experiment)
        self.client = mlflow_client(self.uri)
        known = self.run_id
        with turn(self.uri):
            self.run_id = self._find(experiment) or self._create(experiment, entries)
            self.client.update_run(self.run_id, status="RUNNING", name=self.run.name)
            if not self.client.get_run(self.run_id).data.params:
                self._log(params={key: str(value)[:500] for key, value in self.run.settings.items()})
            self._log(tags=self.run.tags | {"mlflow.note.content": self.run.description(self.run.folder.summary())})
        return self.run_id != known

    def send(self, entries: Sequence[Entry]) -> None:
        from mlflow.entities import Metric

        points = (Metric(key, value, entry.time, entry.step) for entry in entries for key, value in self.run.metrics(entry).items())
        while batch := list(islice(points, METRICS_A_CALL)):
            with turn(self.uri):
                self.client.log_batch(self.run_id, metrics=batch)

    def finish(self, entries: Sequence[Entry], ending: Ending) -> None:
        summary = self.run.folder.summary()
        tags = {"mth.status": ending.status, "mlflow.note.content": self.run.description(summary)}
        if ending.reason:
            tags["mth.reason"] = ending.reason
        self._upload()
        with turn(self.uri):
            self._log(tags=tags)
            self.client.set_terminated(self.run_id, STATUS.get(ending.status, "KILLED"), self.run.end_ms(list(entries)))

    def is_busy(self, error: Exception) -> bool:
        return "database is locked" in str(error)

    def abandon(self) -> None:
        """The thread ends with the process; the client holds nothing."""

    def _log(self, params: dict[str, str] | None = None, tags: dict[str, str] | None = None) -> None:
        from mlflow.entities import Param, RunTag

        for some in _parts(params or {}):
            self.client.log_batch(self.run_id, params=[Param(key, value) for key, value in some.items()])
        for some in _parts(tags or {}):
            self.client.log_batch(self.run_id, tags=[RunTag(key, value[:TAG_LENGTH]) for key, value in some.items()])

    def _find(self, experiment: str) -> str | None:
        """The MLflow run of this folder, if it can still be written to.

        A run whose id was never stored, because a kill came between, is found by the key that it was made with.
        """
        from mlflow.exceptions import MlflowException

        saved = read_json(self.run.folder.mlflow_file)
        run_id = saved.get("run_id") if saved.get("uri") == self.uri else saved.get("others", {}).get(self.uri)
        if run_id:
            try:
                found = self.client.get_run(run_id).info
                active = found.lifecycle_stage == "active" == self.client.get_experiment(found.experiment_id).lifecycle_stage
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                active = False
            if active:
                self._remember(saved, run_id, found.experiment_id)
                return run_id
        if key := saved.get("key"):
            made = self.client.search_runs([experiment], f"tags.`mth.key` = '{key}'", max_results=1)
            for run in made:
                self._remember(saved, run.info.run_id, experiment)
                return run.info.run_id
        return None

    def _create(self, experiment: str, entries: Sequence[Entry]) -> str:
        """Make the run. Ends runs of this folder that a lost `mlflow.json` left open: nobody else can be at work in it."""
        saved = read_json(self.run.folder.mlflow_file)
        if "key" not in saved:
            saved["key"] = uuid.uuid4().hex
            write_json(self.run.folder.mlflow_file, saved)
        tags = {key: self.run.tags[key] for key in ("mth.run_dir", "mth.identity")}
        mine = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items() if "'" not in value)
        for lost in self.client.search_runs([experiment], f"{mine} and attributes.status = 'RUNNING'"):
            self.client.set_terminated(lost.info.run_id, "KILLED")
        made = self.client.create_run(experiment, self.run.start_ms(list(entries)), tags | {"mth.key": saved["key"]}, self.run.name)
        self._remember(saved, made.info.run_id, experiment)
        return made.info.run_id

    def _remember(self, saved: dict[str, Any], run_id: str, experiment: str) -> None:
        """Keep the ids. Stores that `sync` sent the run to as well are in `others`."""
        if saved.get("uri", self.uri) == self.uri:
            changed = {"uri": self.uri, "run_id": run_id, "experiment_id": experiment}
        else:
            changed = {"others": saved.get("others", {}) | {self.uri: run_id}}
        if saved | changed != saved:
            write_json(self.run.folder.mlflow_file, saved | changed)

    def _upload(self) -> None:
        """config.yaml without passwords, summary.json, a table of samples, and the run's page if it has one."""
        run, folder = self.run, self.run.folder
        tracker = run.config.tracker
        shown = replace(tracker, uri=tracker.uri and without_password(tracker.uri))
        self.client.log_text(self.run_id, to_yaml(replace(run.config, tracker=shown)), folder.config_file.name)
        for file in (folder.summary_file, folder.page_file):
            if file.is_file():
                self.client.log_artifact(self.run_id, str(file))
        if table := samples_table(run):
            self.client.log_dict(self.run_id, table, "samples.json")
            with turn(self.uri):
                self.client.set_tag(self.run_id, "mlflow.loggedArtifacts", '[{"path": "samples.json", "type": "table"}]')


def samples_table(run: TrackedRun) -> dict[str, Any] | None:
    """Evaluation samples of the first and last step as MLflow's pages read a table: columns, and rows of values. None without samples."""
    rows = []
    for sample in shown_samples(run.folder):
        values = vars(sample) | {"reply": "\n".join(sample.turns), "truth": " | ".join(sample.truth)}
        rows.append([values[column] for column in SAMPLE_COLUMNS])
    return {"columns": list(SAMPLE_COLUMNS), "data": rows} if rows else None


def _parts(items: dict[str, str]) -> Iterator[dict[str, str]]:
    """The items in portions that MLflow takes."""
    remaining = iter(items.items())
    while part := dict(islice(remaining, TAGS_A_CALL)):
        yield part
