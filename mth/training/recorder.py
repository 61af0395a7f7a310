"""Records a run: metrics as they come, whether it collapsed, and a summary whatever happens."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from mth.config.schema import Config
from mth.foundations.errors import EngineError, first_line
from mth.foundations.signals import Interrupted
from mth.models.device import device_record
from mth.runs.journal import Journal
from mth.runs.metrics import ENTROPY, REWARD
from mth.runs.samples import EVAL
from mth.runs.summary import Summary, summarize
from mth.runs.trackers.tracker import Tracker
from mth.training.collapse import collapse_reason
from mth.training.evaluation import Evaluation
from mth.training.learner import Learner
from mth.training.metrics import peak_memory
from mth.training.shown import passes, why_nothing_was_learned

EARLY = 10  # step after which a run that learns nothing says so


class Recorder:
    """What is known of a run so far.

    status: how it ends, if it ended now. collapsed: why it counts as collapsed; None if it does not. passes: the newest pass@1 per task.
    """

    def __init__(self, run: Learner, tracker: Tracker) -> None:
        self.run, self.tracker = run, tracker
        self.status = "finished"
        self.collapsed: str | None = None
        self.summary = Summary()
        self.passes: dict[str, tuple[int, float]] = {}
        for entry in tracker.journal.entries:
            self.passes |= passes(entry.step, entry.metrics)

    def log(self, step: int, metrics: dict[str, float], evaluation: Evaluation | None = None) -> None:
        """Write a step's metrics and its evaluation, if it has one, samples first; from then on the step is done."""
        evaluation = evaluation or Evaluation()
        self.run.samples.add(step, EVAL, evaluation.samples)
        self.tracker.log(step, metrics | evaluation.metrics, evaluation.rewards)
        self.run.progress.step, self.run.progress.unlogged = step, None
        self.passes |= passes(step, evaluation.metrics)
        if step == EARLY and (hint := why_nothing_was_learned(self.tracker.journal.entries, self.run.parts.config)):
            tqdm.write(f"warning: {hint}", file=sys.stderr)

    def look_back(self) -> None:
        """Mark a resumed run that collapsed on the way to where its journal ends."""
        self.collapsed = past_collapse(self.tracker.journal, self.run.parts.config)

    def watch(self, metrics: dict[str, float], step: int) -> bool:
        """Look for a collapse at a step that the journal does not have yet. Returns True if the run is to end there."""
        config = self.run.parts.config
        if self.collapsed is None:
            rewards, entropies = ([*self.tracker.journal.series(key), metrics[key]] for key in (REWARD, ENTROPY))
            self.collapsed = collapse_reason(rewards, entropies, metrics, config.collapse)
            if self.collapsed is not None:
                tqdm.write(f"collapsed at step {step}: {self.collapsed}")
        return self.stopped

    @property
    def stopped(self) -> bool:
        """Whether a collapse ends the run."""
        return self.collapsed is not None and self.run.parts.config.collapse.stop


@contextmanager
def recording(run: Learner, root: Path, grid: Path | None) -> Iterator[Recorder]:
    """Opens journal and tracker. At the end saves a checkpoint, writes the summary and closes the tracker, also after an error.

    Ends within for an interrupted evaluation: the checkpoint then holds the step that was to be evaluated. If the engine failed, the
    checkpoint is of the last step; after another error, or a second Ctrl-C, the last one on disk stays.
    """
    run_dir, config = run.folder.path, run.parts.config
    run.folder.add_to_record(facts=run.facts, device=device_record(run.parts.policy.model.device))
    tracker = Tracker(config, run_dir, root, run.progress.logged, run.facts, grid)
    recorder = Recorder(run, tracker)
    reason = None
    try:
        try:
            yield recorder
        except Interrupted:
            recorder.status = "interrupted"
        if recorder.collapsed is not None and recorder.status == "finished":
            recorder.status = "collapsed"
        reason = recorder.collapsed
        if run.progress.step >= 0:
            run.save()
    except KeyboardInterrupt:
        recorder.status = "interrupted"
        raise
    except BaseException as error:
        recorder.status, reason = "failed", first_line(error)
        if isinstance(error, EngineError) and run.progress.logged >= 0:
            run.save()
        raise
    finally:
        ticket = run.parts.ticket
        peak = float(peak_memory(ticket.values.device))
        recorder.summary = summarize(tracker.journal, config, recorder.status, reason, ticket, ticket.memory(run.optimizer), peak)
        try:
            run.folder.write_summary(recorder.summary)
        except OSError as error:
            tqdm.write(f"warning: {run.folder.summary_file} could not be written ({error})")
        tracker.close(recorder.status, reason)


def past_collapse(journal: Journal, config: Config) -> str | None:
    """Why a run counted as collapsed on the way to where its journal ends: a resumed run stays marked."""
    steps = [entry.metrics for entry in journal.entries if REWARD in entry.metrics]
    rewards, entropies = ([metrics[key] for metrics in steps] for key in (REWARD, ENTROPY))
    reasons = (collapse_reason(rewards[: i + 1], entropies[: i + 1], metrics, config.collapse) for i, metrics in enumerate(steps))
    return next((reason for reason in reasons if reason is not None), None)
