"""The device that a model lives on, and what torch is told before it uses a GPU."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mth.foundations.errors import UserError, first_line, require

LARGEST_ON_CPU = 300_000_000  # parameters: `auto` takes a GPU for a larger model, or fails
GPU_VARIABLES = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it, cuBLAS does not repeat its bits
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",  # rollouts and updates need tensors of other sizes; else memory is cut into pieces
}
OLD_NAMES = {"PYTORCH_ALLOC_CONF": "PYTORCH_CUDA_ALLOC_CONF"}


def resolve_device(name: str, parameters: Callable[[], int] | None = None) -> torch.device:
    """Return the device of `model.device`. `auto` is the first GPU, or the CPU if there is none.

    parameters: counts those of the model; asked only where `auto` finds no GPU. Raises UserError if no GPU is visible, or not this one, but
    asked for by name or by the model's size.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if parameters is not None:
            refuse_silent_cpu(parameters())
        return torch.device("cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"model.device={name}, but no GPU is visible to torch; use model.device=cpu")
    device = torch.device(name)
    if device.index is not None and device.index >= (count := torch.cuda.device_count()):
        raise UserError(f"model.device={name}, but torch sees {count} GPUs; leave the key at auto, as a grid gives each cell a GPU")
    return device


def refuse_silent_cpu(parameters: int) -> None:
    """Raise UserError if a model is too large to be trained on a CPU by mistake."""
    require(
        parameters <= LARGEST_ON_CPU,
        f"no GPU is visible to torch, and this model has {parameters / 1e6:,.0f} million parameters; give model.device=cpu if that is meant",
    )


def prepare_device(device: torch.device, deterministic: bool) -> None:
    """Tell torch, for the whole process, how to use a GPU. Does nothing for a CPU.

    cuDNN's attention is switched off: it plans anew for every new length, which takes about 100 ms (docs/gpu.md). deterministic: same command,
    same bits.
    """
    if device.type != "cuda":
        return
    for name, value in GPU_VARIABLES.items():
        if OLD_NAMES.get(name, name) not in os.environ:
            os.environ.setdefault(name, value)
    if device.index is not None:
        torch.cuda.set_device(device)  # streams are made on the current one, and a graph holds what runs on its stream
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.use_deterministic_algorithms(deterministic)
    settings: Any = torch.utils.deterministic
    settings.fill_uninitialized_memory = False  # nothing here reads memory before it is written


def device_record(device: torch.device) -> dict[str, str | bool]:
    """What run.json says of the device: its name, and on a GPU whether the same command gives the same bits."""
    if device.type != "cuda":
        return {"name": str(device)}
    return {"name": f"{device} ({torch.cuda.get_device_name(device)})", "deterministic": torch.are_deterministic_algorithms_enabled()}


@contextmanager
def named_gpu_errors() -> Iterator[None]:
    """Within, a full GPU and an operation without a deterministic algorithm raise UserError with the key that helps."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        keys = "lower train.micro_batch_tokens or rollout.batch_size, or give model.activation_checkpointing=true"
        raise UserError(f"the GPU's memory is full ({first_line(error, 160)}); {keys}") from error
    except RuntimeError as error:
        if "use_deterministic_algorithms" not in str(error):
            raise
        raise UserError(f"model.deterministic=true: {first_line(error, 160)}; give model.deterministic=false") from error
