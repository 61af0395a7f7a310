"""Rules across keys, checked before anything is loaded. Ranges of single keys are on the fields of the schema."""

import re
from typing import Any

from mth.config.choices import LAYER_FAMILIES, ClipNorm, WeightGradient
from mth.config.learning_rates import RATES
from mth.config.options import options
from mth.foundations.errors import require


def check_rules(config: Any) -> None:
    """Check what one key alone cannot show. config: a Config. Raises UserError naming the key and the remedy."""
    c = config
    size, group = c.train.batch_size, c.rollout.group_size
    require(size % group == 0, f"train.batch_size={size} must be a multiple of rollout.group_size={group}")
    for low, high in (("min_turns", "max_turns"), ("min_names", "max_names")):
        least, most = getattr(c.task, low), getattr(c.task, high)
        require(most >= least, f"task.{high}={most} must be at least task.{low}={least}")
    known = {*options("task"), *c.eval.tasks}
    for key, names in (("paths", c.eval.paths), ("per_task", c.eval.per_task)):
        for name in names:
            require(name in known, f"eval.{key}.{name} is unknown; choose from {', '.join(options('task'))}")
    require(
        c.mask.budget is None or c.mask.family in LAYER_FAMILIES, "mask.budget belongs to mask=first_layer, middle_layer and last_layer"
    )
    require(c.mask.magnitude is None or c.mask.family == "magnitude", "mask.magnitude belongs to mask=magnitude")
    require(
        not (c.optimizer.clip_norm is ClipNorm.dense and c.optimizer.weight_gradient is WeightGradient.sampled),
        "optimizer.clip_norm=dense needs whole gradients: leave optimizer.weight_gradient at auto",
    )
    require(re.match(r"https?://\w", c.rollout.url) is not None, f"rollout.url={c.rollout.url} must be like http://127.0.0.1:8711")
    require(c.run_dir is None or bool(c.run_dir.strip()), "run_dir= is empty; name a folder, or leave it out")
    device = c.model.device
    require(re.fullmatch(r"auto|cpu|cuda(:\d+)?", device) is not None, f"model.device={device} must be auto, cpu or cuda[:N]")
    require(
        c.rollout.engine != "vllm" or re.fullmatch(r"cuda:0*[1-9]\d*", device) is None,
        f"model.device={device}: vLLM in the run's process takes the first GPU; leave the key at auto, and set CUDA_VISIBLE_DEVICES={device[5:]}",
    )


def check_trainable(config: Any) -> None:
    """Raises UserError if the configuration can be evaluated but not trained, or asks for a sparsity that looks like a share of 1.

    A run that was trained with such a sparsity can still be read.
    """
    c, percent = config, config.sparsity.percent
    require(not 0 < percent < 1, f"sparsity.percent={percent:g} is a share, not a percent: did you mean {100 * percent:.9g}?")
    require(
        c.lr.value is not None,
        f"model.path={c.model.path} has no learning rates; give lr=... or model.lr_table= one of {', '.join(RATES)}",
    )
    require(c.task.train_rows > 0, f"task={c.task.name} has no training rows; train another task with eval.tasks=[{c.task.name}]")
    require(c.checkpoint is None, "checkpoint= belongs to mth.evaluate; to continue a run give its run_dir=, or resume=true")


def check_context(config: Any, limit: int) -> None:
    """Raises UserError if a reply alone fills the model's context of `limit` tokens. Prompts are checked before they are generated from."""
    if config.rollout.engine != "hf":
        limit = min(limit, config.rollout.context or limit)
    limits = {"rollout.max_tokens": config.rollout.max_tokens, "eval.max_tokens": config.eval.max_tokens or 0}
    limits |= {f"eval.per_task.{task}.max_tokens": own.max_tokens or 0 for task, own in config.eval.per_task.items()}
    for key, tokens in limits.items():
        require(tokens < limit, f"{key}={tokens} leaves no room for a prompt in the model's context of {limit} tokens; lower it")
