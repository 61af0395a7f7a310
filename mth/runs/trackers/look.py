"""What a user types to look at a run in its trackers."""

import os
from collections.abc import Iterator
from pathlib import Path

from mth.config.schema import Config
from mth.foundations.files import read_json
from mth.runs.folder import RunFolder
from mth.runs.trackers.mlflow_store import default_uri, ui_command, ui_link


def ways_to_look(config: Config, folder: RunFolder, root: Path) -> Iterator[tuple[str, str]]:
    """Title and command or link, for each tracker."""
    if "mlflow" in config.tracker.chosen:
        uri, known = config.tracker.uri or default_uri(root), read_json(folder.mlflow_file)
        if command := ui_command(uri):
            yield "MLflow UI:", command
        if known.get("uri") == uri and "experiment_id" in known:
            yield "  then open:" if command else "MLflow UI:", ui_link(uri, known["experiment_id"])
    if "tensorboard" in config.tracker.chosen:
        yield "TensorBoard:", f"tensorboard --logdir {os.path.relpath(root if folder.path.is_relative_to(root) else folder.path)}"
    if "wandb" in config.tracker.chosen:
        offline = sorted((folder.path / "wandb").glob("offline-run-*"))
        yield "W&B:", f"wandb sync {os.path.relpath(offline[-1])}" if offline else f"project {config.tracker.experiment}"
