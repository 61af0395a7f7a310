"""A run's folder: the names of its files and what they hold."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mth.config.schema import Config
from mth.config.stored import read_config, to_yaml
from mth.foundations.files import read_json, write_json, write_text
from mth.runs.summary import Summary

DONE = ("finished", "collapsed")


@dataclass(frozen=True)
class RunFolder:
    """The files of a run.

    samples/: what the model wrote, see `mth.runs.samples`. config.yaml: the configuration. run.json: who runs it, where, with which code. journal.jsonl: every metric of every step.
    summary.json: how it ended. beginning.json: the shorter run that it extends. mlflow.json, wandb.json: its ids there. trackers.json: what its
    trackers have. tensorboard/, wandb/: what those two trackers write. page.html: its page.
    """

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def record_file(self) -> Path:
        return self.path / "run.json"

    @property
    def journal_file(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def summary_file(self) -> Path:
        return self.path / "summary.json"

    @property
    def beginning_file(self) -> Path:
        return self.path / "beginning.json"

    @property
    def mlflow_file(self) -> Path:
        return self.path / "mlflow.json"

    @property
    def wandb_file(self) -> Path:
        """The id of its run in Weights & Biases."""
        return self.path / "wandb.json"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def trackers_file(self) -> Path:
        """What arrived where."""
        return self.path / "trackers.json"

    @property
    def page_file(self) -> Path:
        return self.path / "page.html"

    @property
    def log_file(self) -> Path:
        """Output of the run's process, in a grid on this machine."""
        return self.path / "log.txt"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def gradients(self) -> Path:
        return self.path / "spectrum"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def exists(self) -> bool:
        """Whether it has a configuration, and so belongs to a run."""
        return self.config_file.is_file()

    def config(self) -> Config:
        """The stored configuration. Raises UserError if it is missing or damaged."""
        return read_config(self.config_file)

    def write_config(self, config: Config) -> None:
        write_text(self.config_file, to_yaml(config))

    def summary(self) -> Summary:
        """How the run ended; an empty summary if it has not ended in order."""
        return Summary.from_json(read_json(self.summary_file))

    def write_summary(self, summary: Summary) -> None:
        write_json(self.summary_file, summary.to_json())

    @property
    def status(self) -> str | None:
        """finished, collapsed, failed or interrupted, as the run left it; None if it has not ended in order."""
        return self.summary().status

    def record(self) -> dict[str, Any]:
        """What run.json holds; empty if the run was never started."""
        return read_json(self.record_file)

    def add_to_record(self, **facts: Any) -> None:
        """Add facts to run.json, or replace them. The file is not written if it holds them already."""
        known = self.record()
        if known | facts != known:
            write_json(self.record_file, known | facts)


def is_artifact(folder: Path) -> bool:
    """Whether a folder holds copies of a run's files for MLflow, and is no run folder, wherever the store keeps its artifacts."""
    return folder.name == "artifacts" and not RunFolder(folder).record_file.is_file()


def host_name() -> str:
    """This machine; inside a job, by SLURM's name for it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()
