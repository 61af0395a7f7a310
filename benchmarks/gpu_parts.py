"""Sections of benchmarks/gpu.py that measure torch's parts: the device's ceilings, the LM head, attention."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from mth.training import fused_head, logprobs
from mth.training.lines import Line, line_attention


def ceilings(bench: Any) -> None:
    """The fastest copy and matrix products."""
    count, width = (2**16, 128) if bench.tiny else (2**31, 8192)
    source = torch.ones(count, dtype=torch.bfloat16, device=bench.device)
    target = torch.empty_like(source)
    spent = bench.median(lambda target=target, source=source: target.copy_(source), 5)
    bench.say("ceiling", of="copy, read and written", value=4 * count / spent / 1e12, unit="TB/s")
    del source, target
    for name, dtype, tf32 in (("bf16", torch.bfloat16, False), ("fp32", torch.float32, False), ("tf32", torch.float32, True)):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        left = torch.randn(width, width, device=bench.device, dtype=dtype)
        spent = bench.median(lambda left=left: left @ left, 5)
        bench.say("ceiling", of=f"product, {name}", value=2 * width**3 / spent / 1e12, unit="TFLOP/s")
    torch.backends.cuda.matmul.allow_tf32 = False


def head(bench: Any) -> None:
    """The LM head and its loss by size of a chunk, plain and compiled; beside Liger where it is installed."""
    words, width, tokens = (500, 32, 256) if bench.tiny else (151_936, 1536, 8192)
    layer = nn.Linear(width, words, bias=False, device=bench.device, dtype=bench.dtype)
    nn.init.normal_(layer.weight, std=0.02)
    hidden = torch.randn(tokens, width, device=bench.device, dtype=bench.dtype)
    targets = torch.randint(words, (tokens,), device=bench.device)

    def all_chunks(rows: int, function: Any) -> None:
        for start in range(0, tokens, rows):
            part = hidden[start : start + rows].detach().requires_grad_()
            chosen, _ = function(part, targets[start : start + rows])
            (-chosen.sum() / tokens).backward()
        layer.weight.grad = None

    def measure(kind: str, rows: int, function: Any) -> None:
        with bench.guarded(f"{kind}, {rows} rows"):
            first = bench.seconds(lambda: all_chunks(rows, function))
            before = bench.clear()
            spent = bench.median(lambda: all_chunks(rows, function), 3, 0)
            bench.say("head", kind=kind, rows=rows, us_a_token=1e6 * spent / tokens, first_s=first, gib_above=bench.peak() - before)

    for exponent in (24, 26, 28):
        rows = max(1, min(tokens, 2**exponent // words // 16 * 16))
        measure("plain", rows, lambda part, chosen: logprobs.chosen_logprobs(layer, part, chosen, 1.0))
    rows = 64 if bench.tiny else logprobs.chunk_rows(tokens, words, on_cpu=False)
    function = fused_head.chosen_fused if bench.tiny else torch.compile(fused_head.chosen_fused, dynamic=False, fullgraph=True)
    measure("compiled", rows, lambda part, chosen: fused_head.padded(function, layer, 1.0, rows, part, chosen))
    with bench.guarded("Liger"):
        _liger(bench, layer, hidden, targets)


def _liger(bench: Any, layer: nn.Linear, hidden: torch.Tensor, targets: torch.Tensor) -> None:
    try:
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Fused
    except ImportError:
        return
    inputs = hidden.detach().requires_grad_()

    def both() -> None:
        result = Fused.apply(inputs, layer.weight, targets, None, None, -100, 0.0, 0.0, "mean")
        (result[0] if isinstance(result, tuple) else result).backward()
        layer.weight.grad = inputs.grad = None

    spent = bench.median(both)
    bench.say("head", kind="Liger", rows=0, us_a_token=1e6 * spent / len(targets), first_s=0.0, gib_above=bench.peak())


@contextmanager
def fixed_order(fixed: bool) -> Iterator[None]:
    """With or without torch's deterministic algorithms."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(fixed)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def attention(bench: Any) -> None:
    """Forward and backward of one layer's attention: the first call for a length, and further ones, by kernel."""
    rows, heads, key_heads, size = (2, 4, 2, 16) if bench.tiny else (22, 12, 2, 128)

    def operands(length: int, count: int = rows, repeat: bool = False) -> list[torch.Tensor]:
        shapes = [heads, *(2 * [heads if repeat else key_heads])]
        options: dict[str, Any] = {"device": bench.device, "dtype": bench.dtype, "requires_grad": True}
        return [torch.randn(count, each, length, size, **options) for each in shapes]

    kernels = {"torch's choice": None, "flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}
    kernels |= {"memory-efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH}
    for name, kernel in kernels.items():
        for length in (24, 25) if bench.tiny else (722, 730, 731):
            with bench.guarded(f"{name}, {length}"):
                repeat = name == "memory-efficient"  # has no grouped keys
                given = operands(length, repeat=repeat)

                def run(given=given, kernel=kernel, repeat=repeat) -> None:
                    with sdpa_kernel(kernel) if kernel is not None else torch.enable_grad():
                        scaled_dot_product_attention(*given, is_causal=True, enable_gqa=not repeat).sum().backward()

                first = 1000 * bench.seconds(run)
                bench.say("causal rows", kernel=name, length=length, first_ms=first, then_ms=1000 * bench.median(run, 3, 0))
    prompt, reply, replies, packed = (4, 8, 4, 1) if bench.tiny else (130, 600, 4, 6)
    length = prompt + replies * reply
    segment = torch.tensor([0] * prompt + [i + 1 for i in range(replies) for _ in range(reply)], device=bench.device)
    mask = torch.ones(length, length, dtype=torch.bool, device=bench.device).tril() & (
        (segment[None] == 0) | (segment[None] == segment[:, None])
    )
    masked = mask.expand(packed, 1, length, length)
    for fixed in (True, False):  # a run has a fixed order, for which torch's backward under a mask is another
        with bench.guarded(f"packed, {fixed}"), fixed_order(fixed):
            given = operands(length, packed)

            def run(given=given) -> None:
                scaled_dot_product_attention(*given, attn_mask=masked, enable_gqa=True).sum().backward()

            first, spent = 1000 * bench.seconds(run), bench.median(run, 3, 0)
            kernel = f"torch's choice, with a mask, {'as a run' if fixed else 'in no fixed order'}"
            bench.say("shared rows", kernel=kernel, rows=packed, length=length, first_ms=first, then_ms=1000 * spent)
    for groups in (packed, 1):
        with bench.guarded(f"in a line, {groups}"), fixed_order(True):
            line = Line.of([prompt] * groups, [[reply] * replies] * groups, [], bench.device)
            options = {"device": bench.device, "dtype": bench.dtype, "requires_grad": True}
            flat = [torch.randn(1, count, groups * length, size, **options) for count in (heads, key_heads, key_heads)]

            def attend(flat=flat, line=line) -> None:
                line_attention(nn.Module(), *flat, None, line=line)[0].sum().backward()

            try:
                first, spent = 1000 * bench.seconds(attend), bench.median(attend, 3, 0)
            except NotImplementedError:
                bench.say("left out", why="torch has flash attention for pieces of any length on a GPU only")
                continue
            bench.say("shared rows", kernel="in a line, as a run", rows=groups, length=length, first_ms=first, then_ms=1000 * spent)
    with bench.guarded("plain rows"):
        given = operands(prompt + reply, packed * replies)
        spent = bench.median(lambda: scaled_dot_product_attention(*given, is_causal=True, enable_gqa=True).sum().backward())
        bench.say(
            "shared rows",
            kernel="the same replies as plain rows",
            rows=packed * replies,
            length=prompt + reply,
            first_ms=0.0,
            then_ms=1000 * spent,
        )
    if bench.tiny:
        return
    with bench.guarded("flex attention"):
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        def allowed(b: Any, h: Any, i: Any, j: Any) -> Any:
            return (i >= j) & ((segment[j] == 0) | (segment[j] == segment[i]))

        given, compiled = operands(length, packed), torch.compile(flex_attention, dynamic=False)
        blocks = create_block_mask(allowed, None, None, length, length, device=str(bench.device))
        first = 1000 * bench.seconds(lambda: compiled(*given, block_mask=blocks, enable_gqa=True).sum().backward())
        spent = bench.median(lambda: compiled(*given, block_mask=blocks, enable_gqa=True).sum().backward(), 3, 0)
        bench.say("shared rows", kernel="flex attention", rows=packed, length=length, first_ms=first, then_ms=1000 * spent)
