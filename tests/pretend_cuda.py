"""A pretended GPU: tensors that hold CPU data but say they are on cuda:0.

An operation that mixes them with CPU tensors raises, as CUDA does. Each wait of the host for the device is counted by the line of mth that
caused it. Results are those of the CPU. So the whole of `train` runs as on a GPU, apart from kernels and their speed. A graph keeps the
operations of its capture, and its replay runs these on the same tensors and nothing else. A wait during a capture raises.
"""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

import mth
from mth.tickets import trial

PACKAGE = str(Path(mth.__file__).parent)
DEVICE = torch.device("cuda", 0)
aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
INDEXING = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default)  # take CPU indices
WAITING = {  # the size or the value of their result is needed on the host
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
    aten.equal.default,
    aten._local_scalar_dense.default,
}


class Waits:
    """Waits of the host for the device, by kind and place. operations: how many ran on the device."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self.operations = self.captures = self.replays = 0
        self.refused = False  # as torch.cuda.set_sync_debug_mode("error") does

    def add(self, kind: str) -> None:
        if self.refused:
            raise RuntimeError("called a synchronizing CUDA operation")
        frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(PACKAGE)]
        where = f"{Path(frames[-1].filename).relative_to(PACKAGE)}:{frames[-1].name}" if frames else "elsewhere"
        self.found[f"{kind} {where}"] += 1

    @property
    def count(self) -> int:
        return self.found.total()

    def within(self, *places: str) -> int:
        """Waits whose place contains one of these texts."""
        return sum(count for where, count in self.found.items() if any(place in where for place in places))

    def __str__(self) -> str:
        return "\n".join(f"{count:5} {where}" for where, count in self.found.most_common())


WAITS = Waits()  # of the pretended GPU that is there now


class OnDevice(torch.Tensor):
    """A tensor on the pretended GPU. inner: its data."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "OnDevice":
        facts = {"strides": inner.stride(), "storage_offset": inner.storage_offset()} if inner.layout is torch.strided else {}
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, layout=inner.layout, device="meta", **facts)
        made.inner = inner
        return made

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, other: "OnDevice") -> None:
        torch.Tensor.data.__set__(self, other)
        self.inner = other.inner

    def tolist(self) -> Any:
        WAITS.add("to host")
        return self.inner.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        made: torch.Tensor = OnDevice(self.inner.clone())
        memo[id(self)] = nn.Parameter(made, self.requires_grad) if isinstance(self, nn.Parameter) else made
        return memo[id(self)]

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def __repr__(self) -> str:
        return f"OnDevice({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


class Dispatch(TorchDispatchMode):
    """Sees operations without an argument on the device too: those that make tensors there."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


class Graph:
    """As torch.cuda.CUDAGraph. calls: operations with their arguments and results."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        WAITS.replays += 1
        for function, args, kwargs, results in self.calls:
            for before, now in zip(tree_flatten(results)[0], tree_flatten(function(*args, **kwargs))[0], strict=True):
                if isinstance(before, OnDevice) and before.inner.data_ptr() != now.inner.data_ptr():
                    before.inner.copy_(now.inner)


class Capture(TorchDispatchMode):
    """As torch.cuda.graph. Operations run during a capture too, which those that change nothing but their results allow."""

    def __init__(self, graph: Graph, stream: Any = None, capture_error_mode: str = "") -> None:
        super().__init__()
        self.graph = graph

    def __enter__(self) -> Any:
        WAITS.captures, WAITS.refused = WAITS.captures + 1, True
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        WAITS.refused = False
        super().__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = function(*args, **(kwargs or {}))
        self.graph.calls.append((function, args, kwargs or {}, results))
        return results


class Stream:
    """As torch.cuda.Stream."""

    def wait_stream(self, other: Any) -> None:
        pass


def run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the data, as its arguments' devices allow."""
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    on_device = any(isinstance(each, OnDevice) for each in tensors)
    if function in COPIES:
        return copy(function, args, kwargs)
    if on_device:
        WAITS.operations += 1
        refuse_mix(function, args, tensors)
        masks = [each for each in args[1] if each is not None and each.dtype is torch.bool] if function in INDEXING else []
        if function in WAITING or masks:
            WAITS.add("result")
    target = kwargs.get("device")
    here = on_device if target is None else is_device(target)
    results = function(*tree_map(data, args), **tree_map(data, on_cpu(kwargs)))
    known = {id(data(each)): each for each in tensors}  # an operation in place returns its argument
    return tree_map(lambda each: known.get(id(each), OnDevice(each) if here else each) if isinstance(each, torch.Tensor) else each, results)


def copy(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """A copy between devices or within one."""
    in_place = function is aten.copy_.default
    source = args[1] if in_place else args[0]
    target = kwargs.get("device")
    to_device = isinstance(args[0], OnDevice) if in_place or target is None else is_device(target)
    waits = not (to_device and kwargs.get("non_blocking"))
    if waits and to_device != isinstance(source, OnDevice):
        WAITS.add("to device" if to_device else "to host")
    result = function(*map(data, args), **on_cpu(kwargs))
    return args[0] if in_place else OnDevice(result) if to_device else result


def refuse_mix(function: Any, args: Any, tensors: list[torch.Tensor]) -> None:
    """CUDA takes scalars of the CPU, and CPU indices, which it copies."""
    strangers = [each for each in tensors if not isinstance(each, OnDevice) and each.dim() > 0]
    if strangers and function in INDEXING and isinstance(args[0], OnDevice):
        WAITS.add("to device")
    elif strangers:
        shapes = [(tuple(each.shape), str(each.device)) for each in tensors]
        raise RuntimeError(f"Expected all tensors to be on the same device: {function} of {shapes}")


def is_device(name: Any) -> bool:
    return torch.device(name).type in ("cuda", "meta")


def data(value: Any) -> Any:
    return value.inner if isinstance(value, OnDevice) else value


def on_cpu(kwargs: dict[str, Any]) -> dict[str, Any]:
    return kwargs | ({"device": torch.device("cpu")} if kwargs.get("device") is not None else {})


def move(module: nn.Module) -> nn.Module:
    """Put parameters and buffers on the pretended GPU. Tied parameters stay tied."""
    moved: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and not isinstance(parameter.data, OnDevice):
                fresh = moved.setdefault(id(parameter), nn.Parameter(OnDevice(parameter.data), parameter.requires_grad))
                part._parameters[name] = fresh
        for name, buffer in part._buffers.items():
            if buffer is not None and not isinstance(buffer, OnDevice):
                part._buffers[name] = OnDevice(buffer)
    return module


@contextmanager
def pretended_gpu() -> Iterator[Waits]:
    """Within, torch has a GPU. Yields its waits. Load models before: transformers loads by way of real meta tensors, which would be mistaken."""
    global WAITS
    WAITS = Waits()
    plain_tensor, plain_to = torch.tensor, nn.Module.to

    def tensor(values: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        if device is None or not is_device(device):
            return plain_tensor(values, *args, **kwargs)
        WAITS.add("to device")
        with _disable_current_modes():
            return OnDevice(plain_tensor(values, *args, **kwargs))

    def to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        return move(module) if args and isinstance(args[0], torch.device) and is_device(args[0]) else plain_to(module, *args, **kwargs)

    fake = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "set_device": lambda _: None,
        "device_count": lambda: 1,
        "get_device_name": lambda *_: "pretended GPU",
        "synchronize": lambda *_: WAITS.add("explicit"),
        "max_memory_allocated": lambda *_: 1,
        "reset_peak_memory_stats": lambda *_: None,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": nullcontext,
        "get_sync_debug_mode": lambda: "default",
        "set_sync_debug_mode": lambda mode: setattr(WAITS, "refused", mode == "error"),
        "CUDAGraph": Graph,
        "graph": Capture,
    }
    settings = torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.cudnn_sdp_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in fake.items():
                patch.setattr(torch.cuda, name, value)
            patch.setattr(torch, "tensor", tensor)
            patch.setattr(trial, "_tried", lambda *_: False)  # no kernels, unless the fixture `launched` interprets them
            patch.setenv("TORCH_COMPILE_DISABLE", "1")  # a compiler would look for kernels of the device
            patch.setattr(nn.Module, "to", to)
            with Dispatch():
                yield WAITS
    finally:
        torch.use_deterministic_algorithms(settings[0])
        torch.backends.cuda.enable_cudnn_sdp(settings[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled
