"""Triton's interpreter in place of a GPU: the kernels of mth.tickets.kernels on CPU tensors, and on those of the pretended GPU."""

import importlib.util
from collections import Counter
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

from mth.tickets import launches, products
from tests.pretend_cuda import data


@pytest.fixture(scope="session")
def interpreted_kernels():
    """The module as Triton makes it for its interpreter, which it decides on while it imports."""
    pytest.importorskip("triton")
    spec = importlib.util.find_spec("mth.tickets.kernels")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        spec.loader.exec_module(module)
    module.core = module.tl.core  # the interpreter replaces the language that it finds among a kernel's globals
    return module


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
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    for name in ("sum", "zeros"):  # Triton's own library was imported before, so not for the interpreter
        monkeypatch.setattr(tl, name, getattr(tl, name).fn)
    monkeypatch.setattr(InterpreterBuilder, "create_fp_trunc", partial(rounded, InterpreterBuilder.create_fp_trunc))
    counts = Counter()

    def launch(kernel, grid, *arguments, **constants):
        counts[kernel.fn.__name__] += 1
        with _disable_current_modes():
            kernel[grid](*map(data, arguments), **constants)

    for module in (launches, products):
        monkeypatch.setattr(module, "launch", launch)
        monkeypatch.setattr(module, "kernels", lambda: interpreted_kernels)
    for works in ("ticket.moves_work", "route.products_work"):
        monkeypatch.setattr(f"mth.tickets.{works}", lambda device: True)
    return counts
