"""A run as TensorBoard's event files, in `tensorboard/` of its folder. A resumed run writes them anew from the journal."""

from collections.abc import Sequence
from typing import Any

from mth.runs.journal import Entry
from mth.runs.metrics import PASS_AT_1
from mth.runs.samples import Sample
from mth.runs.trackers.record import TrackedRun, shown_samples
from mth.runs.trackers.writer import Ending

SHOWN = 20  # samples of a task and step that become text


class TensorBoardBackend:
    """See `Backend`."""

    def __init__(self, run: TrackedRun) -> None:
        self.run, self.log_dir = run, run.folder.tensorboard
        self.place = "TensorBoard"
        self.patience_s = 60.0
        self.writer: Any = None

    def open(self, entries: Sequence[Entry]) -> bool:
        from torch.utils.tensorboard import SummaryWriter

        self.abandon()
        for old in self.log_dir.glob("events.out.tfevents.*"):
            old.unlink()
        self.writer = SummaryWriter(str(self.log_dir), purge_step=0, flush_secs=10)  # a TensorBoard that is open forgets what it read
        self.writer.add_text("description", self.run.description(self.run.folder.summary()).replace("\n", "\n\n"))
        return True

    def send(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            for key, value in self.run.metrics(entry).items():
                self.writer.add_scalar(key, value, entry.step, entry.time / 1000)
        self.writer.flush()

    def finish(self, entries: Sequence[Entry], ending: Ending) -> None:
        from torch.utils.tensorboard.summary import hparams

        time_s = self.run.end_ms(list(entries)) / 1000
        self.writer.add_text("description", self.run.description(self.run.folder.summary()).replace("\n", "\n\n"), 1, time_s)
        passes = {f"eval/{task}/{PASS_AT_1}": 0.0 for task in self.run.config.eval.tasks or []}
        settings = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in self.run.settings.items()}
        for summary in hparams(settings, passes):
            self.writer.file_writer.add_summary(summary, walltime=time_s)
        by_step: dict[tuple[str, int], list[Sample]] = {}
        for sample in shown_samples(self.run.folder):
            by_step.setdefault((sample.task, sample.step), []).append(sample)
        for (task, step), samples in by_step.items():
            self.writer.add_text(f"samples/{task}", "\n\n---\n\n".join(map(_as_text, samples[:SHOWN])), step, time_s)
        self.writer.close()

    def is_busy(self, error: Exception) -> bool:
        return False

    def abandon(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None


def _as_text(sample: Sample) -> str:
    """A sample as code, in which TensorBoard reads no markup."""
    text = "\n".join([sample.prompt, *sample.turns])
    code = "\n".join(f"    {line}" for line in text.splitlines())
    return f"reward {sample.reward:g}, {sample.tokens} tokens, {sample.stop}\n\n{code}"
