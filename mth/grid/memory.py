"""Predicts the peak memory of a run from shapes. benchmarks/memory.py compares the prediction with measured runs."""

import math
from typing import Any, NamedTuple

from mth.config.choices import ClipNorm, OptimizerName
from mth.config.schema import Config, ModelConfig

PROCESS_BYTES = 450 * 2**20  # Python with torch, transformers and MLflow, measured on a CPU
CONTEXT_BYTES = 600 * 2**20  # what CUDA and its libraries take of a GPU; assumed
VLLM_CPU_CACHE_BYTES = 2**30  # about what vLLM's cache takes on a CPU
PROMPT_TOKENS = 256  # assumed length of a prompt


class ModelFacts(NamedTuple):
    """shapes: name -> shape of every parameter tensor, tied ones once. architecture: transformers' configuration of the model."""

    shapes: Any
    architecture: Any

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def facts_of_models(model: ModelConfig, known: dict[str, ModelFacts]) -> ModelFacts:
    """Shapes and architecture of a model, kept in `known`. No weights are loaded."""
    from mth.models.shapes import architecture, parameter_shapes

    if repr(model) not in known:
        known[repr(model)] = ModelFacts(parameter_shapes(model), architecture(model))
    return known[repr(model)]


def active_counts(config: Config, model: ModelFacts) -> list[int]:
    """Active entries per tensor."""
    from mth.tickets import masks

    return list(masks.active_counts(model.shapes, config.sparsity.percent, config.mask).values())


def memory_estimate(config: Config, model: ModelFacts, card: int | None = None) -> dict[str, int]:
    """Predicted bytes of a run's peak by part: process, weights, ticket, work, engine.

    card: bytes of the GPU that the run will have; None: the run has what is visible here. ticket: values, gradient, index, moments. work: the
    largest of what never lives at the same time, an update, the key-value cache of `hf`, or a copy of the values: on a GPU those before a step,
    on a CPU a checkpoint on its way to the disk, with the moments. Activations are those of a full micro-batch, or of one row of a prompt and
    the longest reply if that is more. engine: vLLM in the same process. On a GPU `process` is host memory, see `on_card`.
    """
    from mth.models.device import resolve_device

    on_cpu = config.model.device == "cpu" or (card is None and resolve_device(config.model.device).type == "cpu")
    width = config.model.dtype.bytes
    sizes, counts = [math.prod(shape) for shape in model.shapes.values()], active_counts(config, model)
    active, total = sum(counts), sum(sizes)
    moments = {OptimizerName.sgd: 1 if config.optimizer.momentum else 0}.get(config.optimizer.name, 2)
    indexed = sum(count for count, size in zip(counts, sizes, strict=True) if count < size)  # a whole tensor needs no index
    hf = config.rollout.engine == "hf"
    copies = 2 if hf and config.rollout.dtype not in (None, config.model.dtype) else 1
    cache = 2 * _cache_bytes(config, model) if hf else 0
    copied = active * (4 + (4 * moments if on_cpu else 0))
    return {
        "process": PROCESS_BYTES,
        "weights": total * width * copies,
        "ticket": active * (4 + 4 + 4 * moments + 4 * (config.algorithm.kl_coef > 0) + 4 * config.algorithm.lag) + 4 * indexed,
        "work": max(_update_bytes(config, model, sizes, counts, on_cpu), cache, copied),
        "engine": _engine_bytes(config, total, indexed, None if on_cpu else card),
    }


def on_card(parts: dict[str, int]) -> int:
    """Bytes that a run needs on its GPU. parts: from `memory_estimate`."""
    return sum(parts.values()) - parts["process"] + CONTEXT_BYTES


def _engine_bytes(config: Config, parameters: int, indexed: int, card: int | None) -> int:
    """What vLLM takes in the run's own process: on a GPU the share that it is given, on a CPU its weights and its cache.

    Beside that, the places of the ticket's entries in its weights. indexed: entries of tensors that are not active as a whole.
    """
    rollout = config.rollout
    if rollout.engine != "vllm":
        return 0
    weights = parameters * (rollout.dtype or config.model.dtype).bytes
    cache = VLLM_CPU_CACHE_BYTES if rollout.kv_cache_mib is None else rollout.kv_cache_mib * 2**20
    share = weights + cache if card is None or rollout.kv_cache_mib is not None else int(rollout.gpu_memory_utilization * card)
    return share + 8 * indexed


def _cache_bytes(config: Config, model: ModelFacts) -> int:
    """The key-value cache of one batch of rollouts."""
    from mth.models.shapes import head_size

    shape = model.architecture
    heads = getattr(shape, "num_key_value_heads", shape.num_attention_heads)
    evaluated = [config.eval.of(task).max_tokens or 0 for task in config.eval.tasks or []]
    longest = max(config.rollout.max_tokens, *evaluated) + PROMPT_TOKENS
    per_token = 2 * shape.num_hidden_layers * heads * head_size(shape) * config.model.dtype.bytes
    return per_token * config.rollout.batch_size * longest


def _update_bytes(config: Config, model: ModelFacts, sizes: list[int], counts: list[int], on_cpu: bool) -> int:
    """Activations, logits, the largest dense gradient, on a GPU those that wait for it, and what sampled ones need."""
    from mth.tickets.launches import WAITING_BYTES
    from mth.tickets.patterns import expected_nonempty
    from mth.tickets.route import should_sample
    from mth.training.logprobs import CHUNK_ELEMENTS, CHUNK_ELEMENTS_GPU

    shape, width = model.architecture, config.model.dtype.bytes
    shapes = list(model.shapes.values())
    head = () if on_cpu else (shape.vocab_size, shape.hidden_size)  # a GPU never samples the gradients of head and embedding
    sampled = [dims != head and should_sample(dims, count, config.optimizer, on_cpu) for dims, count in zip(shapes, counts, strict=True)]
    largest = max((size for size, count, yes in zip(sizes, counts, sampled, strict=True) if count and not yes), default=0)
    width_of_sums = 4  # the norm of the dense gradient is that of fp32 sums
    gradient = largest * width
    if config.optimizer.clip_norm is ClipNorm.dense:
        gradient = sum(sizes) * width_of_sums + (largest * width if width < width_of_sums else 0)
    gradient += 0 if on_cpu else min(WAITING_BYTES, width * sum(sizes))

    layers, hidden = shape.num_hidden_layers, shape.hidden_size
    inner = getattr(shape, "intermediate_size", None) or 4 * hidden
    tokens = max(config.train.micro_batch_tokens, PROMPT_TOKENS + config.rollout.max_tokens)  # a micro-batch has one row at least
    per_layer = 10 * hidden + 4 * inner  # inputs kept for backward: two norms, q, k, v, attention, residuals; gate, up, their product
    # Only the gradient of the down projection needs that product: as many of its columns are kept as hold active entries.
    # A GPU keeps all of them, and transposes both operands of one layer at a time.
    down = [(count, yes and on_cpu) for dims, count, yes in zip(shapes, counts, sampled, strict=True) if dims == (hidden, inner)]
    saved = sum(inner - expected_nonempty(inner, count) if yes else inner * (count == 0) for count, yes in down)
    kept = per_layer * layers - saved
    chosen = [(dims, count) for dims, count, yes in zip(shapes, counts, sampled, strict=True) if yes]
    operands = max((tokens * width * sum(dims) for dims, _ in chosen), default=0)
    patterns = sum(4 * (count + dims[0]) for dims, count in chosen) if on_cpu else operands
    if config.model.activation_checkpointing:  # on a CPU, what is kept of each layer leaves holes in the heap, about one large tensor each
        kept = 2 * hidden * layers + per_layer + (inner * layers if on_cpu else 0)
    copies = 2 if config.rollout.temperature == 1 else 3
    chunk = min(CHUNK_ELEMENTS if on_cpu else CHUNK_ELEMENTS_GPU, tokens * shape.vocab_size)
    logits = (4 * copies + (0 if on_cpu else width)) * chunk  # fp32, on a GPU beside those in the model's dtype
    return int(tokens * kept * width) + logits + gradient + patterns
