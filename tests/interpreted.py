"""Triton's interpreter in place of a GPU: the kernels of mth.tickets.kernels on CPU tensors, and on those of the pretended GPU."""

import importlib.util
from collections import Counter
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

from mth.tickets import launches
from tests.pretend_cuda import data


@pytest.fixture(scope="session")
def interpreted_kernels():
    """The module as Triton makes it for its interpreter, which it decides on while it imports."""
    tl = pytest.importorskip("triton.language")
    from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder

    spec = importlib.util.find_spec("mth.tickets.kernels")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        spec.loader.exec_module(module)
        for name in ("sum", "zeros"):  # of Triton's own library, which was imported before
            patch.setattr(tl, name, InterpretedFunction(getattr(tl, name).fn))
        patch.setattr(InterpreterBuilder, "create_fp_trunc", partial(rounded, InterpreterBuilder.create_fp_trunc))
        yield module


def rounded(plain, value, kind):
    """fp32 to bf16 by rounding to the nearest even number, as a GPU does it; Triton's interpreter cuts the digits off."""
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle, interpreter_builder

    if (value.dtype.scalar, kind.scalar) == (tl.float32, tl.bfloat16):
        return TensorHandle(torch.from_numpy(value.data).bfloat16().view(torch.uint16).numpy(), tl.bfloat16)
    return plain(interpreter_builder, value, kind)


@pytest.fixture
def launched(monkeypatch, interpreted_kernels):
    """Kernels work on any device. Returns how often each was launched, by name."""
    counts = Counter()

    def launch(kernel, grid, *arguments, **constants):
        counts[kernel.fn.__name__] += 1
        with _disable_current_modes():
            kernel[grid](*map(data, arguments), **constants)

    monkeypatch.setattr(launches, "launch", launch)
    monkeypatch.setattr(launches, "_kernels", lambda: interpreted_kernels)
    for user in ("mth.tickets.launches", "mth.tickets.ticket"):
        monkeypatch.setattr(f"{user}.available", lambda device: True)
    return counts
