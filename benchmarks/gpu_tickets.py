"""Sections of benchmarks/gpu.py that measure tickets: a whole optimizer step by method, a ticket's launches, sampled gradients by kernels."""

from importlib.util import find_spec
from typing import Any

import methods
import torch
from gpu_bench import Bench, model_of, ticket_of

from mth.config.schema import Config
from mth.models.device import prepare_device
from mth.tickets import products
from mth.tickets.launches import Waiting
from mth.tickets.optimizer import build_optimizer
from mth.tickets.ticket import Ticket
from mth.training.logprobs import completion_backward

LAYERS = {  # of Qwen2.5-1.5B: rows, columns, and how many layers read the same input
    "gate, up": (8960, 1536, 2),
    "down": (1536, 8960, 1),
    "query": (1536, 1536, 3),
    "output": (1536, 1536, 1),
    "key, value": (256, 1536, 3),
}
PROGRAMS = [(4, 256, 4), (4, 512, 4), (16, 128, 4), (8, 512, 8), (2, 1024, 4)]  # entries, tokens, warps; tried beside mth's own
ODD = [(77, 40, 130, 60), (1, 5, 3, 1), (150, 96, 160, 153), (1000, 257, 96, 49)]  # tokens, rows, columns, entries


def step(bench: Bench, name: str) -> None:
    """One optimizer step, by method: 44 rows in micro-batches of 16,384 tokens."""
    methods.DEVICE, methods.DTYPE = bench.device, bench.dtype
    rows, prompt, reply, limit = (4, 4, 8, 24) if bench.tiny else (44, 130, 600 if name == "1.5b" else 300, 16384)
    length, floor = prompt + reply, 0.0
    cases = [("floor", 99.0), ("ticket", 99.0), ("full", 0.0), ("ticket-sampled", 99.9), ("ticket", 99.9), ("ticket-sampled", 99.99)]
    cases += [("ticket", 99.99), ("ticket-sampled", 99.0), ("lora", 99.0), ("shira", 99.0)]
    cases = [case for case in cases if case[1] != 99.99] if bench.tiny else cases
    for deterministic in (True, False):
        prepare_device(bench.device, deterministic)
        for method, percent in cases if deterministic else [("ticket", 99.0)]:
            if method in ("lora", "shira") and find_spec("peft") is None:
                continue
            with bench.guarded(f"{method} {percent}"):
                model = model_of(bench, name)
                ids = torch.randint(model.config.vocab_size, (rows, length), device=bench.device)
                sampled = torch.zeros_like(ids, dtype=torch.bool)
                sampled[:, prompt:] = True
                take, total, at_once = methods.METHODS[method](model, percent), rows * reply, max(1, limit // length)

                def work(model=model, ids=ids, sampled=sampled, total=total, at_once=at_once) -> None:
                    for start in range(0, rows, at_once):
                        part = slice(start, start + at_once)
                        completion_backward(model, ids[part], sampled[part], 1.0, lambda chosen, *_: -chosen.sum() / total)

                before = bench.clear()
                first = bench.seconds(lambda take=take, work=work: take(work))
                spent = bench.median(lambda take=take, work=work: take(work), 3, 0)
                floor = spent if method == "floor" else floor
                bench.say(
                    "step",
                    method=method,
                    percent=percent,
                    deterministic=deterministic,
                    seconds=spent,
                    first=first,
                    times_floor=spent / floor if floor else 0.0,
                    gib_above=bench.peak() - before,
                )
            model = take = work = ids = sampled = None
            bench.clear()


def ticket(bench: Bench) -> None:
    """What a ticket adds to a step: gather, write, read, optimizer; by kernels, and as torch does it without them."""
    model = model_of(bench, "1.5b")
    for deterministic in (True, False):
        prepare_device(bench.device, deterministic)
        for percent in (99.0, 99.9):
            made = ticket_of(model, percent)
            optimizer = build_optimizer(made, Config().optimizer, 1e-6)
            calls = {"gather": lambda made=made: gather(made), "write": made.write, "read": made.read, "optimizer": optimizer.step}
            for by in ("kernels", "torch") if made.few_launches else ("torch",):
                made.few_launches = by == "kernels"
                times = {f"{key}_ms": 1000 * bench.median(call) for key, call in calls.items()}
                bench.say("ticket", by=by, percent=percent, deterministic=deterministic, entries=made.active_parameters, **times)
            made.detach()
            del made, optimizer, calls


def gather(made: Ticket) -> None:
    """What the hooks of a backward do, with the weights in place of gradients."""
    waiting = Waiting()
    for name, parameter in made.parameters.items():
        if made.slices[name].stop > made.slices[name].start:
            waiting.add(name, parameter.data)
            if waiting.enough or not made.few_launches:
                made._add(waiting.take())
    made._add(waiting.take())


def kernel(bench: Bench) -> None:
    """Sampled gradients by kernels: their error, and for each layer the time of sums and transposes against the dense gradient."""
    if find_spec("triton") is None:
        bench.say("left out", why="triton is not installed")
        return
    prepare_device(bench.device, True)
    for tokens, rows, columns, count in ODD[:2] if bench.tiny else ODD:
        for dtype in (torch.float32, torch.bfloat16):
            with bench.guarded(f"{tokens} tokens, {rows} x {columns}, {dtype}"):
                error(bench, tokens, rows, columns, count, dtype)
    tokens, share = (32, 128) if bench.tiny else (16384, 1)
    for layer, (rows, columns, readers) in list(LAYERS.items())[: 2 if bench.tiny else None]:
        with bench.guarded(layer):
            dy, x = (torch.randn(tokens, width // share, device=bench.device, dtype=bench.dtype) for width in (rows, columns))
            turned = [1000 * bench.median(lambda given=given: products.transposed(given)) for given in (dy, x)]
            plain = [1000 * bench.median(lambda given=given: given.t().contiguous()) for given in (dy, x)]
            bench.say("transposes", layer=layer, dy_ms=turned[0], x_ms=turned[1], torch_dy_ms=plain[0], torch_x_ms=plain[1])
            for percent in (99.0, 99.5, 99.9, 99.99):
                against_dense(bench, layer, percent, dy, x, turned[0] + turned[1] / readers)


def error(bench: Bench, tokens: int, rows: int, columns: int, count: int, dtype: torch.dtype) -> None:
    """The error of the sums against fp64, relative to their norm."""
    dy, x = (torch.randn(tokens, width, device=bench.device).to(dtype) for width in (rows, columns))
    index, results = entries(rows * columns, count, bench.device), []
    for _ in range(2):
        results.append(torch.zeros(count, device=bench.device))
        products.add_products(results[-1], index, products.transposed(dy), products.transposed(x))
    expected = (dy.double().t() @ x.double()).flatten()[index.long()]
    relative = ((results[0] - expected).norm() / expected.norm()).item()
    same = torch.equal(*results)
    bench.say("error", shape=f"{rows} x {columns}", tokens=tokens, entries=count, dtype=str(dtype), relative=relative, same_bits=same)


def against_dense(bench: Bench, layer: str, percent: float, dy: torch.Tensor, x: torch.Tensor, turned_ms: float) -> None:
    """One layer's gradient at a sparsity. turned_ms: its transposes. best: sizes of a program that were faster than mth's."""
    size = dy.shape[1] * x.shape[1]
    index = entries(size, max(1, int(size * (100 - percent) / 100)), bench.device)
    rounds = 1 if bench.tiny else 5
    flat, chosen = torch.zeros(index.numel(), device=bench.device), index.long()
    dense = 1000 * bench.median(lambda: flat.add_((dy.t() @ x).flatten()[chosen]), rounds)
    dyt, xt = products.transposed(dy), products.transposed(x)

    def sums() -> None:
        products.add_products(flat, index, dyt, xt)

    spent = 1000 * bench.median(sums, rounds)
    facts: dict[str, Any] = {"layer": layer, "percent": percent, "entries": index.numel(), "dense_ms": dense, "sums_ms": spent}
    facts |= {"transposes_ms": turned_ms, "dense_over_sampled": dense / (spent + turned_ms)}
    own = products.ENTRIES, products.TOKENS, products.WARPS
    times = {own: spent}
    try:
        for sizes in PROGRAMS[: 1 if bench.tiny else None] if percent == 99.9 else []:
            products.ENTRIES, products.TOKENS, products.WARPS = sizes
            times[sizes] = 1000 * bench.median(sums, rounds)
    finally:
        products.ENTRIES, products.TOKENS, products.WARPS = own
    best = min(times, key=times.__getitem__)
    bench.say("sampled", **facts, best=" x ".join(map(str, best)), best_ms=times[best])


def entries(size: int, count: int, device: torch.device) -> torch.Tensor:
    """`count` sorted flat indices."""
    return torch.randperm(size, device=device)[:count].sort().values.int()
