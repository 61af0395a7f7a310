"""Records a function's kernels as a CUDA graph. Everything here runs on a GPU only."""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch


def captured(step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """Return a function that launches all kernels of `step` at once, and returns the tensor that `step` did.

    step: reads and writes tensors that stay where they are, does the same however often it is called, and never waits for the device.
    Raises RuntimeError if it cannot be captured.
    """
    main, stream, mode = torch.cuda.current_stream(), _side_stream(), torch.cuda.get_sync_debug_mode()
    stream.wait_stream(main)
    with torch.cuda.stream(stream):  # puts the stream back even where a capture fails
        # A step that waits must fail before the capture: versions of torch before 2.12 do not recover from a capture that fails.
        _set_sync_debug_mode("error")
        try:
            step()  # libraries load their kernels and take their workspaces, which is not allowed during a capture
        finally:
            _set_sync_debug_mode(mode)
            main.wait_stream(stream)  # also where the step fails: what it has launched writes to the tensors that the caller goes on with
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            output = step()

    def replay() -> torch.Tensor:
        graph.replay()
        return output

    return replay


def _set_sync_debug_mode(mode: int | str) -> None:
    """As torch's, without its warning that the mode finds most waits, not all."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode")
        torch.cuda.set_sync_debug_mode(mode)


@cache
def _side_stream() -> Any:
    """One stream for all captures: cuBLAS keeps a workspace for each stream."""
    return torch.cuda.Stream()
