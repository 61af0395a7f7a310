"""A run in Weights & Biases. Its library lives in a process of its own, which can be ended: nothing of it can hold a training run up."""

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from mth.foundations.files import read_json, write_json
from mth.runs.journal import Entry
from mth.runs.trackers.record import TrackedRun, shown_samples
from mth.runs.trackers.writer import Ending

ENTRIES_A_CALL = 200


class WandbBackend:
    """See `Backend`. WANDB_MODE, WANDB_ENTITY and the like have their usual meaning; offline, the run's folder keeps everything.

    The id of the run is in `wandb.json`, so that a resumed run continues it.
    """

    def __init__(self, run: TrackedRun) -> None:
        self.run, self.project = run, run.config.tracker.experiment
        self.place = f"W&B project {self.project}"
        self.patience_s = 60.0
        self.process: subprocess.Popen[str] | None = None

    def open(self, entries: Sequence[Entry]) -> bool:
        self.abandon()
        run, state = self.run, self.run.folder.wandb_file
        saved = read_json(state)
        if "id" not in saved:
            saved = {"id": uuid.uuid4().hex[:8]}
            write_json(state, saved)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mth.runs.trackers.wandb_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        tags = run.tags
        try:
            self._ask(
                "init",
                project=self.project,
                id=saved["id"],
                name=run.name,
                group=tags.get("sweep"),
                notes=run.description(run.folder.summary()),
                dir=str(run.folder.path),
                config=run.settings | tags,
            )
        except RuntimeError as error:
            if "deleted" in str(error):  # W&B never takes such an id again; the next attempt makes a new run
                state.unlink()
            raise
        return True

    def send(self, entries: Sequence[Entry]) -> None:
        for start in range(0, len(entries), ENTRIES_A_CALL):
            some = entries[start : start + ENTRIES_A_CALL]
            self._ask("log", rows=[[entry.step, entry.time / 1000, self.run.metrics(entry)] for entry in some])

    def finish(self, entries: Sequence[Entry], ending: Ending) -> None:
        folder, columns = self.run.folder, ("step", "task", "prompt", "reply", "reward", "truth")
        rows = [[s.step, s.task, s.prompt, "\n".join(s.turns), s.reward, " | ".join(s.truth)] for s in shown_samples(folder)]
        files = [str(file) for file in (folder.summary_file, folder.page_file) if file.is_file()]
        self._ask(
            "finish",
            exit_code=int(ending.status == "failed"),
            summary={"mth.status": ending.status} | ({"mth.reason": ending.reason} if ending.reason else {}),
            notes=self.run.description(folder.summary()),
            files=files,
            table={"columns": list(columns), "data": rows} if rows else None,
        )
        assert self.process is not None
        self.process.wait()
        self.process = None

    def is_busy(self, error: Exception) -> bool:
        return False

    def abandon(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _ask(self, what: str, **values: Any) -> None:
        """Let the process do something and wait for its answer. Raises RuntimeError with the library's reason if it could not."""
        assert self.process is not None and self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": what} | values) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError("its process ended")
        if problem := json.loads(answer)["problem"]:
            raise RuntimeError(problem)
