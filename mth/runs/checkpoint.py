"""Checkpoints are deltas: the recipe of the mask, the K values, the optimizer's state. One safetensors file, written atomically."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mth.config.identity import differing_keys, identity, prefix_identity
from mth.config.schema import Config
from mth.config.stored import from_plain, to_plain
from mth.foundations.errors import UserError, first_line
from mth.foundations.files import atomic, from_json, to_json
from mth.runs.folder import RunFolder
from mth.tickets.recipes import family_recipe
from mth.tickets.saved import FINGERPRINT, SavedTicket
from mth.tickets.ticket import Ticket

FORMAT = "mth-ticket-1"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded file. tensors: `values`, the optimizer's state, and what else was saved. header: mask, step and configuration."""

    path: Path
    header: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    @property
    def config(self) -> Config:
        return from_plain(self.header["config"])


def save_checkpoint(
    path: Path,
    ticket: Ticket,
    config: Config,
    step: int,
    optimizer: torch.optim.Optimizer,
    extra: dict[str, torch.Tensor],
    unlogged: dict[str, float] | None = None,
) -> None:
    """Write a checkpoint atomically. Raises UserError if the disk is full or not writable.

    extra: further tensors that an exact resume needs. unlogged: the step's metrics, if its evaluation is still to come. mth draws nothing from
    torch's random state, but a model might: it is kept too.
    """
    state = optimizer.state.get(ticket.values, {})
    tensors = {"values": ticket.values.detach(), "rng": torch.get_rng_state(), **extra}
    tensors |= {f"optimizer.{key}": value for key, value in state.items() if isinstance(value, torch.Tensor)}
    header = {
        "format": FORMAT,
        "step": step,
        "unlogged": unlogged,
        "identity": identity(config),
        "config": to_plain(config),
        "mask_sha256": ticket.mask_sha256,
        "base_sha256": ticket.base_sha256,
        "active_parameters": ticket.active_parameters,
        "total_parameters": ticket.total_parameters,
    }
    try:
        with atomic(path) as temporary:
            save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, temporary, {"mth": to_json(header)})
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"checkpoint {path} could not be written ({error}); earlier ones are intact: make room, then start again with resume=true"
        ) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file. Raises UserError if it is missing, truncated, or not one of ours."""
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            header = from_json((file.metadata() or {}).get("mth", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"checkpoint {path} is damaged or truncated ({first_line(error)})") from error
    if header.get("format") != FORMAT or "values" not in tensors:
        raise UserError(f"checkpoint {path} was not written by mth (format {header.get('format')}, expected {FORMAT})")
    return Checkpoint(path, header, tensors)


def restore_ticket(checkpoint: Checkpoint, ticket: Ticket) -> None:
    """Put a checkpoint's values into a ticket and its model. Raises UserError if it belongs to another model or mask."""
    header = checkpoint.header
    for what, key in (("model", "total_parameters"), ("mask", "active_parameters"), ("mask", "mask_sha256"), ("model", "base_sha256")):
        have = getattr(ticket, key)
        if header[key] != have:
            raise UserError(f"checkpoint {checkpoint.path} belongs to another {what}: {key} is {header[key]}, here {have}")
    ticket.values.data.copy_(checkpoint.tensors["values"])
    ticket.write()


def saved_ticket(checkpoint: Checkpoint) -> SavedTicket:
    """The ticket of a checkpoint as a ticket's folder would hold it."""
    config, header = checkpoint.config, checkpoint.header
    mask = config.mask
    named = {"budget": mask.budget, "magnitude": mask.magnitude}
    options = {key: value.name for key, value in named.items() if value is not None} | mask.options
    recipe = family_recipe(mask.family, config.sparsity.percent, config.mask_seed, options)
    return SavedTicket(checkpoint.path, recipe, {key: header[key] for key in FINGERPRINT}, checkpoint.tensors["values"])


def restore_training(
    checkpoint: Checkpoint, ticket: Ticket, optimizer: torch.optim.Optimizer, config: Config
) -> tuple[int, dict[str, float] | None]:
    """Put a checkpoint's state into ticket and optimizer. Returns its step, and the step's metrics if these were not logged yet.

    The checkpoint may be of a run with fewer steps. Raises UserError if the configuration differs otherwise.
    """
    if prefix_identity(checkpoint.config) != prefix_identity(config) or checkpoint.config.train.steps > config.train.steps:
        different = differing_keys(checkpoint.header["config"], to_plain(config))
        raise UserError(
            f"checkpoint {checkpoint.path} belongs to another configuration: {', '.join(different)}; give the same values or another run_dir"
        )
    restore_ticket(checkpoint, ticket)
    prefix = "optimizer."
    state = {key.removeprefix(prefix): value for key, value in checkpoint.tensors.items() if key.startswith(prefix)}
    if state:
        packed = optimizer.state_dict()
        packed["state"] = {0: state}
        optimizer.load_state_dict(packed)
    torch.set_rng_state(checkpoint.tensors["rng"])
    return int(checkpoint.header["step"]), checkpoint.header.get("unlogged")


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Where a run keeps the checkpoint of a step."""
    return RunFolder(run_dir).checkpoints / f"step_{step:06d}.safetensors"


def checkpoints_of(run_dir: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    return sorted((RunFolder(run_dir).checkpoints).glob("step_*.safetensors"))


def latest_checkpoint(run_dir: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest readable checkpoint of a run, and one line for each damaged one that was passed over."""
    warnings: list[str] = []
    for path in reversed(checkpoints_of(run_dir)):
        try:
            return load_checkpoint(path), warnings
        except UserError as error:
            warnings.append(f"{error}; using the one before")
    return None, warnings


def open_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint file, or the newest readable one of a run folder, with a line on stderr for each that is passed over."""
    if not path.is_dir():
        return load_checkpoint(path)
    checkpoint, warnings = latest_checkpoint(path)
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)
    if checkpoint is None:
        raise UserError(f"{path}: no readable checkpoint in this folder")
    return checkpoint


def prune_checkpoints(run_dir: Path, keep: int) -> None:
    """Delete all but the latest `keep` checkpoints."""
    for path in checkpoints_of(run_dir)[:-keep]:
        path.unlink()
