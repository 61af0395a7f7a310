"""Stores one gradient per step in the run folder, whole or as a random projection. The format is in mth.runs.gradient_files."""

import shutil
from pathlib import Path

import numpy as np
import torch

from mth.config.choices import Collect, Dtype
from mth.config.schema import Config
from mth.foundations.errors import UserError
from mth.foundations.files import atomic
from mth.runs.folder import RunFolder
from mth.runs.gradient_files import gradient_bytes, gradients_header, read_header, step_file, step_files, write_header
from mth.tickets.ticket import Ticket

CHUNK_ELEMENTS = 2**22  # entries projected or converted at a time


class Collector:
    """Writes one file per step into the run folder.

    trained: number of steps already taken; files of later steps are deleted, because these steps will be repeated.
    Raises UserError, before training starts, if the disk is too small for the remaining steps, or if the folder has gradients of another
    model, mask or projection.
    """

    def __init__(self, run_dir: Path, config: Config, ticket: Ticket, trained: int) -> None:
        self.settings, self.folder = config.spectrum, RunFolder(run_dir).gradients
        header = gradients_header(config, ticket.active_parameters, ticket.mask_sha256)
        self.folder.mkdir(parents=True, exist_ok=True)
        known = read_header(self.folder)
        different = [key for key in header if known and known.get(key) != header[key]]
        if different:
            key = different[0]
            raise UserError(f"{self.folder} has gradients of another run: {key} is {known.get(key)}, here {header[key]}")
        write_header(self.folder, header)
        for path, step in list(step_files(self.folder)):
            if step > trained:
                path.unlink()
        needed, free = gradient_bytes(header) * (config.train.steps - max(trained, 0)), shutil.disk_usage(self.folder).free
        self.announcement = (
            f"gradients: {config.train.steps} of {ticket.active_parameters:,} entries, {needed / 2**30:.2f} GiB to come in {self.folder}"
        )
        if needed > free:
            raise UserError(
                f"{self.announcement}, but only {free / 2**30:.2f} GiB are free there; make room, or choose spectrum.mode=sketch"
                + (" or spectrum.dtype=bfloat16" if self.settings.dtype is Dtype.float32 else "")
            )

    def add(self, step: int, gradient: torch.Tensor) -> None:
        """Store the flat gradient [K] of a step atomically. Raises UserError if the disk is full."""
        path = step_file(self.folder, step)
        try:
            with atomic(path) as temporary, open(temporary, "wb") as file:
                if self.settings.mode is Collect.sketch:
                    sketch(gradient, self.settings.width, self.settings.seed).tofile(file)
                else:
                    dtype = getattr(torch, self.settings.dtype.name)
                    for piece in gradient.detach().split(CHUNK_ELEMENTS):
                        piece.to(dtype).cpu().view(torch.uint8).numpy().tofile(file)
        except OSError as error:
            raise UserError(f"gradient {path} could not be written ({error}); make room, then start again with resume=true") from error


def sketch(gradient: torch.Tensor, width: int, seed: int) -> np.ndarray:
    """Sparse random projection of a flat gradient [K] to [width] fp64: adds every entry, with a random sign, to one random bucket.

    The inner product of two sketches is an unbiased estimate of the inner product g.h of the gradients, with variance at most
    (|g|^2 |h|^2 + (g.h)^2) / width (count sketch: Charikar et al. 2002; Weinberger et al. 2009). Bucket and sign of an entry are a hash of
    seed and position, so no matrix is stored. O(K) time.
    """
    total = torch.zeros(width, dtype=torch.float64, device=gradient.device)
    for start in range(0, gradient.numel(), CHUNK_ELEMENTS):
        piece = gradient[start : start + CHUNK_ELEMENTS].double()
        bits = _hash(torch.arange(start, start + piece.numel(), device=gradient.device), seed)
        sign = 1.0 - 2.0 * (bits & 1).double()
        total.index_add_(0, (bits >> 1) % width, piece * sign)
    return total.cpu().numpy()


def _hash(position: torch.Tensor, seed: int) -> torch.Tensor:
    """62 well-mixed bits per position: the finalizer of splitmix64 (Steele et al. 2014) in wrapping int64 arithmetic."""

    def shift(value: torch.Tensor, bits: int) -> torch.Tensor:  # logical shift: >> of int64 is arithmetic
        return (value >> bits) & ((1 << (64 - bits)) - 1)

    start = (0x9E3779B97F4A7C15 * (2 * seed + 1)) % 2**64
    value = position + (start - 2**64 if start >= 2**63 else start)
    value = (value ^ shift(value, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    value = (value ^ shift(value, 27)) * (0x94D049BB133111EB - 2**64)
    return shift(value ^ shift(value, 31), 2)
