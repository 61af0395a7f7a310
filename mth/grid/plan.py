"""What a grid will cost, before it is launched: cells, active parameters, memory, rollouts, what is finished already."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from mth.cells import Cell
from mth.config import ClipNorm, Config, OptimizerName, check_context, flat, to_plain
from mth.errors import UserError
from mth.grid.record import TO_DO
from mth.grid.show import table

PROCESS_BYTES = 450 * 2**20  # Python with torch, transformers and MLflow loaded, measured on a CPU
SIZES = {"float32": 4, "bfloat16": 2}


class ModelFacts(NamedTuple):
    """shapes: name -> shape of every parameter tensor, tied ones once. architecture: transformers' configuration of the model."""

    shapes: Any
    architecture: Any


def model_facts(cells: Sequence[Cell]) -> dict[str, ModelFacts]:
    """Shapes and architecture of every model among the cells, by the model section's text; no weights are loaded."""
    from mth.policy import architecture, parameter_shapes

    models = {repr(cell.config.model): cell.config.model for cell in cells}
    return {key: ModelFacts(parameter_shapes(model), architecture(model)) for key, model in models.items()}


def check_models(cells: Sequence[Cell]) -> None:
    """Raise UserError, naming the cell, for data that are not there, and for what only the model's architecture shows: no active entry, or
    replies longer than its context.
    """
    from mth.tasks.data import check_exists

    facts = model_facts(cells)
    for cell in cells:
        config, model = cell.config, facts[repr(cell.config.model)]
        try:
            for key, path in {"task.path": config.task.path, **{f"eval.paths.{k}": v for k, v in vars(config.eval.paths).items()}}.items():
                if path is not None:
                    check_exists(key, path)
            if sum(active_counts(config, model)) == 0:
                raise UserError(f"sparsity.percent={config.sparsity.percent} leaves no active entry in this model; lower it")
            check_context(config, model.architecture.max_position_embeddings)
        except UserError as error:
            raise UserError(f"{error} (in the cell {' '.join(cell.overrides)})") from error


def active_counts(config: Config, model: ModelFacts) -> list[int]:
    """Active entries per tensor."""
    from mth.tickets import sampling

    return list(sampling.active_counts(model.shapes, config.sparsity.percent, config.mask).values())


def memory_estimate(config: Config, model: ModelFacts) -> dict[str, int]:
    """Bytes per part of a run's peak: process, weights, ticket (values, gradient, index, moments), and the larger of what never lives at the
    same time: an update (activations, logits, the largest dense gradient), the key-value cache, a checkpoint on its way to the disk.

    The activations are those of a full micro-batch. On a GPU the process's own memory is the host's. benchmarks/memory.py compares with runs.
    """
    from mth.algorithm.logprobs import CHUNK_ELEMENTS
    from mth.policy import resolve_device
    from mth.tickets.sampled import by_shape, occupied

    shape, width = model.architecture, SIZES[config.model.dtype.name]
    on_cpu = resolve_device(config.model.device).type == "cpu"
    shapes = list(model.shapes.values())
    sizes, counts = [math.prod(dims) for dims in shapes], active_counts(config, model)
    active, total = sum(counts), sum(sizes)
    moments = {OptimizerName.sgd: 1 if config.optimizer.momentum else 0}.get(config.optimizer.name, 2)
    indexed = sum(count for count, size in zip(counts, sizes, strict=True) if count < size)  # a whole tensor needs no index
    sampled = [by_shape(dims, count, config.optimizer, on_cpu) for dims, count in zip(shapes, counts, strict=True)]
    patterns = sum(4 * (count + dims[0]) for dims, count, yes in zip(shapes, counts, sampled, strict=True) if yes)
    largest = max((size for size, count, yes in zip(sizes, counts, sampled, strict=True) if count and not yes), default=0)
    gradient = total if config.optimizer.clip_norm is ClipNorm.dense else largest

    layers, hidden = shape.num_hidden_layers, shape.hidden_size
    inner = getattr(shape, "intermediate_size", None) or 4 * hidden
    tokens = config.train.micro_batch_tokens
    per_layer = 10 * hidden + 4 * inner  # inputs kept for backward: two norms, q, k, v, attention, residuals; gate, up, their product
    # Nothing but the down projection's gradient needs that product: as many of its numbers are kept as the active entries read.
    down = [(count, yes) for dims, count, yes in zip(shapes, counts, sampled, strict=True) if dims == (hidden, inner)]
    saved = sum(inner - occupied(inner, count) if yes else inner * (count == 0) for count, yes in down)
    kept = per_layer * layers - saved
    if (
        config.model.activation_checkpointing
    ):  # on a CPU, what is kept of each layer leaves holes in the heap, of about one large tensor each
        kept = 2 * hidden * layers + per_layer + (inner * layers if on_cpu else 0)
    logits = 4 * (2 if config.rollout.temperature == 1 else 3) * min(CHUNK_ELEMENTS, tokens * shape.vocab_size)
    heads = getattr(shape, "num_key_value_heads", shape.num_attention_heads)
    head_dim = getattr(shape, "head_dim", None) or hidden // shape.num_attention_heads
    longest = max(config.rollout.max_tokens, config.eval.max_tokens or 0) + 256
    cache = 2 * layers * heads * head_dim * width * config.rollout.batch_size * longest
    return {
        "process": PROCESS_BYTES,
        "weights": total * width * (2 if config.rollout.dtype not in (None, config.model.dtype) else 1),
        "ticket": active * (4 + 4 + 4 * moments + 4 * (config.algorithm.kl_coef > 0) + 4 * config.algorithm.lag) + 4 * indexed,
        "work": max(int(tokens * kept * width) + logits + gradient * width + patterns, 2 * cache, active * (4 + 4 * moments)),
    }


def plan_table(cells: Sequence[Cell], found: Sequence[tuple[str, int]]) -> str:
    """One line per cell and the totals; found: state of each cell's run, and the steps that one to be continued or extended has."""
    facts = model_facts(cells)
    changing = _changing(cells)
    rows, rollouts, memories = [], 0, []
    for cell, (state, done) in zip(cells, found, strict=True):
        config, model = cell.config, facts[repr(cell.config.model)]
        memory = sum(memory_estimate(config, model).values())
        count = config.train.steps * config.train.batch_size
        memories.append(memory)
        rollouts += count - done * config.train.batch_size if state in TO_DO else 0
        values = flat(to_plain(config))
        active = sum(active_counts(config, model))
        rows.append(
            (cell.name, " ".join(f"{key}={values[key]}" for key in changing), f"{active:,}", f"{memory / 2**30:.2f}", f"{count:,}", state)
        )
    states = [state for state, _ in found]
    summary = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    head = ("cell", "settings", "active", "GiB", "rollouts", "state")
    return f"{table(head, rows)}\n{len(cells)} cells: {summary}; {rollouts:,} rollouts to generate; up to {max(memories) / 2**30:.2f} GiB per cell (estimate)"


def _changing(cells: Sequence[Cell]) -> list[str]:
    """Keys whose values differ between cells."""
    plain = [flat(to_plain(cell.config)) for cell in cells]
    return [key for key in plain[0] if len({str(values.get(key)) for values in plain}) > 1]
