"""Checkpoints are deltas: the recipe of the mask, the K values, the optimizer's state. One safetensors file, written atomically.

A digest of header and tensors is stored beside them. Files of older versions have none; they are loaded if names, types and lengths fit.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mth.config.identity import differing_keys, identity, prefix_identity
from mth.config.schema import Config
from mth.config.stored import from_plain, to_plain
from mth.foundations.errors import UserError, first_line
from mth.foundations.files import atomic, from_json, to_json
from mth.runs.folder import RunFolder
from mth.tickets.optimizer import state_shapes
from mth.tickets.ticket import Ticket

FORMAT = "mth-ticket-1"
HEADER = "mth"  # the only name in the file's metadata, whose order safetensors leaves open
DIGEST = "xxh3_128"  # name in the header
OPTIMIZER = "optimizer."  # prefix of the tensors of the optimizer's state
HEADER_TYPES = {
    "step": int,
    "identity": str,
    "config": dict,
    "mask_sha256": str,
    "base_sha256": str,
    "active_parameters": int,
    "total_parameters": int,
}


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
    tensors |= {f"{OPTIMIZER}{key}": value for key, value in state.items() if isinstance(value, torch.Tensor)}
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
    tensors = {key: value.contiguous().cpu() for key, value in tensors.items()}
    try:
        with atomic(path) as temporary:
            save_file(tensors, temporary, {HEADER: to_json(header | {DIGEST: _digest(header, tensors)})})
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"checkpoint {path} could not be written ({error}); earlier ones are intact: make room, then start again with resume=true"
        ) from error


def _digest(header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """Finds damage, not forgery: a cryptographic digest takes ten times as long."""
    digest = xxhash.xxh3_128(to_json(header).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and check a checkpoint file. Raises UserError if it is missing, damaged, truncated, or not one of ours."""
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            header = from_json((file.metadata() or {}).get(HEADER, "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except Exception as error:  # what damaged bytes raise depends on where they are
        raise UserError(f"checkpoint {path} is damaged or truncated ({first_line(error, 160)})") from error
    form = header.get("format") if isinstance(header, dict) else None
    if form != FORMAT:
        raise UserError(f"checkpoint {path} was not written by mth (format {form}, expected {FORMAT})")
    try:
        fault = _fault(header.pop(DIGEST, None), header, tensors)
    except UserError as error:
        raise UserError(f"checkpoint {path}: {error}") from error
    if fault is not None:
        raise UserError(f"checkpoint {path} is damaged ({fault})")
    return Checkpoint(path, header, tensors)


def _fault(digest: str | None, header: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> str | None:
    """What is wrong with the contents of a file, in words. digest: None for files of older versions. Raises UserError if this version cannot read its configuration."""
    if unknown := header.keys() - {"format", "unlogged", *HEADER_TYPES}:
        return f"its header has the unknown key {min(unknown)!r:.40}"
    if digest is not None and digest != _digest(header, tensors):
        return "its contents do not match their digest"
    for key, kind in HEADER_TYPES.items():
        if type(header.get(key)) is not kind:
            return f"its header has no valid {key}"
    config = from_plain(header["config"])
    if not 0 <= header["step"] <= config.train.steps:
        return f"it is of step {header['step']}, but the run has {config.train.steps} steps"
    unlogged = header.get("unlogged")
    if not (unlogged is None or (isinstance(unlogged, dict) and all(isinstance(value, int | float) for value in unlogged.values()))):
        return "its header has no valid unlogged"
    return _misfit(config, header["active_parameters"], tensors, digest is None and header["step"] > 0)


def _misfit(config: Config, count: int, tensors: Mapping[str, torch.Tensor], trained: bool) -> str | None:
    """Which tensor is missing, one too many, or of another shape or type. trained: whether the optimizer must have a state.

    With a digest it need not: a run whose gradients were never finite has none.
    """
    vectors = {"values", "lagged"} if config.algorithm.lag else {"values"}
    expected: dict[str, tuple[int, ...]] = dict.fromkeys(vectors, (count,))
    expected["rng"] = tuple(torch.get_rng_state().shape)
    if trained or any(name.startswith(OPTIMIZER) for name in tensors):
        expected |= {f"{OPTIMIZER}{name}": shape for name, shape in state_shapes(config.optimizer, count).items()}
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            return f"{name} is missing"
        if name not in expected:
            return f"{name!r:.40} does not belong to this run"
        kind = torch.uint8 if name == "rng" else torch.float32
        if (tensors[name].dtype, tuple(tensors[name].shape)) != (kind, expected[name]):
            return f"{name} is {tensors[name].dtype} {list(tensors[name].shape)} instead of {kind} {list(expected[name])}"
    try:
        torch.Generator().set_state(tensors["rng"])
    except RuntimeError as error:
        return f"rng: {first_line(error, 80)}"
    return None


def restore_ticket(checkpoint: Checkpoint, ticket: Ticket) -> None:
    """Put a checkpoint's values into a ticket and its model. Raises UserError if it belongs to another model or mask."""
    header = checkpoint.header
    for what, key in (("model", "total_parameters"), ("mask", "active_parameters"), ("mask", "mask_sha256"), ("model", "base_sha256")):
        have = getattr(ticket, key)
        if header[key] != have:
            raise UserError(f"checkpoint {checkpoint.path} belongs to another {what}: {key} is {header[key]}, here {have}")
    ticket.values.data.copy_(checkpoint.tensors["values"])
    ticket.write()


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
    state = {key.removeprefix(OPTIMIZER): value for key, value in checkpoint.tensors.items() if key.startswith(OPTIMIZER)}
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


def usable_checkpoint(run_dir: Path) -> tuple[Checkpoint | None, list[str]]:
    """As `latest_checkpoint`, for the process that has the folder's lock. Damaged files get the suffix `.damaged`: they are not kept ones."""
    newest: Checkpoint | None = None
    warnings: list[str] = []
    for path in reversed(checkpoints_of(run_dir)):
        try:
            checkpoint = load_checkpoint(path)
            newest = newest or checkpoint
        except UserError as error:
            aside = path.rename(path.with_name(f"{path.name}.damaged"))
            warnings.append(f"{error}; {'using the one before, and ' if newest is None else ''}it is now {aside.name}")
    return newest, warnings


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
    """Delete all but the latest `keep` checkpoints. A run has set damaged ones aside when it started."""
    for path in checkpoints_of(run_dir)[:-keep]:
        path.unlink()
