"""What training adds to the parts of a run: the optimizer, where the run stands, and saving and restoring both."""

from dataclasses import dataclass

import torch
from tqdm import tqdm

from mth.config.choices import Collect
from mth.foundations.errors import require
from mth.runs.checkpoint import checkpoint_path, latest_checkpoint, prune_checkpoints, restore_training, save_checkpoint, usable_checkpoint
from mth.runs.folder import DONE, RunFolder
from mth.runs.samples import SampleStore
from mth.tasks import check_rows
from mth.tickets.optimizer import build_optimizer
from mth.tickets.route import choose_sampled
from mth.training.collector import Collector
from mth.training.setup import Parts
from mth.training.sharing import packing_of


@dataclass
class Progress:
    """Where a run stands, beside ticket and optimizer.

    step: the last optimizer step; -1 before the base model was evaluated. unlogged: metrics of that step while its evaluation is still to
    come. engine_values: with `algorithm.lag`, the values [K] before the last update, from which the next rollouts are generated.
    """

    step: int = -1
    unlogged: dict[str, float] | None = None
    engine_values: torch.Tensor | None = None

    @property
    def logged(self) -> int:
        """The last step that is in the journal."""
        return self.step if self.unlogged is None else self.step - 1


class Learner:
    """A run that can train. Made new, or restored from the newest readable checkpoint of its folder.

    base_values: the base model's values [K], for the KL penalty only.
    """

    def __init__(self, parts: Parts, folder: RunFolder) -> None:
        config, ticket = parts.config, parts.ticket
        check_rows(parts.task, config)
        self.parts, self.folder = parts, folder
        ticket.sampled, dense = choose_sampled(parts.policy.model, ticket, config.optimizer)
        for line in dense:
            tqdm.write(line)
        self.base_values = ticket.values.detach().clone() if config.algorithm.kl_coef > 0 else None
        self.optimizer = build_optimizer(ticket, config.optimizer, config.lr.value or 0.0)
        self.packing = packing_of(parts.policy.model)
        self.progress = Progress(engine_values=ticket.values.detach().clone() if config.algorithm.lag else None)
        self._restore()
        self.samples = SampleStore(folder.samples, config.samples, self.progress.step)
        self.collector = None
        if config.spectrum.mode is not Collect.none:
            self.collector = Collector(folder.path, config, ticket, self.progress.step)
            tqdm.write(self.collector.announcement)

    @property
    def facts(self) -> dict[str, int | str]:
        """Counts of the ticket and the hash of its mask, for run.json and MLflow."""
        ticket = self.parts.ticket
        return {name: getattr(ticket, name) for name in ("active_parameters", "total_parameters", "mask_sha256")}

    def announce(self) -> None:
        """Say in one line what is trained and where it starts."""
        ticket, step = self.parts.ticket, self.progress.logged
        counts = f"{ticket.active_parameters:,} of {ticket.total_parameters:,} parameters, mask {ticket.mask_sha256[:12]}"
        left = f" (step {self.progress.step} is still to be evaluated)" if self.progress.unlogged is not None else ""
        tqdm.write(f"{self.parts.config.label}: {counts}, {'start' if step < 0 else f'continuing after step {step}'}{left}")

    def sync(self, values: torch.Tensor | None = None) -> int:
        """Generate from now on with these values [K], by default the newest. Returns the bytes sent to the engine."""
        return self.parts.player.engine.sync(self.parts.ticket.values.detach() if values is None else values)

    def save(self) -> None:
        """Write a checkpoint and delete the oldest. Raises UserError if the disk is full."""
        config, progress = self.parts.config, self.progress
        extra = {} if progress.engine_values is None else {"lagged": progress.engine_values}
        path = checkpoint_path(self.folder.path, progress.step)
        save_checkpoint(path, self.parts.ticket, config, progress.step, self.optimizer, extra, progress.unlogged)
        prune_checkpoints(self.folder.path, config.checkpoints.keep)

    def _restore(self) -> None:
        done = self.folder.status in DONE  # another process has finished the run while this one waited for the folder
        checkpoint, warnings = (latest_checkpoint if done else usable_checkpoint)(self.folder.path)
        for line in warnings:
            tqdm.write(f"warning: {line}")
        last = None if checkpoint is None else checkpoint.header["step"]
        require(
            not done or last == self.folder.summary().steps,
            f"the run in {self.folder.path} is finished, and its last checkpoint is gone or damaged; force=true runs it anew elsewhere",
        )
        if checkpoint is None:
            return
        self.progress.step, self.progress.unlogged = restore_training(checkpoint, self.parts.ticket, self.optimizer, self.parts.config)
        if self.progress.engine_values is not None:
            self.progress.engine_values = checkpoint.tensors["lagged"].to(self.progress.engine_values.device)
