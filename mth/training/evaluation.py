"""pass@1 and mean reward of a task's evaluation episodes."""

import fcntl
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from mth.config.schema import Config
from mth.config.stored import to_plain
from mth.foundations.errors import UserError
from mth.foundations.files import read_json, write_json
from mth.foundations.progress import purpose
from mth.foundations.statistics import mean, standard_error
from mth.rollout.player import Player, Rollout, score_means
from mth.runs.contents import contents
from mth.runs.metrics import EVAL_REWARD, PASS_AT_1, TRUNCATED, eval_metric, of_prompts, with_error
from mth.runs.samples import Sample, pack, read_samples, write_samples
from mth.tasks import choose_eval
from mth.tasks.base import Task
from mth.training.samples import eval_samples

MOST_TRUNCATED = 0.05  # share of cut replies above which the base model's evaluation warns


@dataclass(frozen=True)
class Evaluation:
    """metrics: by name. rewards: task -> the rewards of all replies, prompt by prompt in the order of `choose_eval`. samples: to be kept."""

    metrics: dict[str, float] = field(default_factory=dict)
    rewards: dict[str, list[float]] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list, compare=False, repr=False)


def summarize(rollouts: Sequence[Rollout], prefix: str, replies: int = 1) -> dict[str, float]:
    """Means over rollouts: pass_at_1, every score of the task, completion length in tokens, share that was cut off.

    replies: to each prompt; the rollouts of a prompt are adjacent. pass_at_1 and reward come with their standard errors over prompts, if
    there are two prompts: the replies to one prompt count as one result, their mean.
    """
    found = of_prompts([rollout.reward for rollout in rollouts], len(rollouts) / replies)
    passes, rewards = found[PASS_AT_1], found[EVAL_REWARD]
    errors = {with_error(key): standard_error(values) for key, values in ((PASS_AT_1, passes), (EVAL_REWARD, rewards))}
    return {
        f"{prefix}/{PASS_AT_1}": mean(passes),
        **{f"{prefix}/{key}": value for key, value in score_means(rollouts).items()},
        **{f"{prefix}/{key}": value for key, value in errors.items() if value is not None},
        f"{prefix}/prompts": float(len(passes)),
        f"{prefix}/completion_tokens": mean([rollout.completion_tokens for rollout in rollouts]),
        f"{prefix}/{TRUNCATED}": mean([float(rollout.truncated) for rollout in rollouts]),
    }


def evaluate(player: Player, tasks: dict[str, Task], config: Config, tokenizer: PreTrainedTokenizerBase | None = None) -> Evaluation:
    """`eval.replies` sampled replies to each evaluation episode of every task. The seed does not contain the step, so every evaluation draws the same noise.

    tokenizer: makes text of the samples that are kept; None: none are.
    """
    result = Evaluation()
    for name, task in tasks.items():
        own = config.eval.of(name)
        replies = own.replies or 1
        episodes = choose_eval(task, own.samples or 1, config.seed.eval)
        with purpose(f"evaluate {name}"):
            rollouts = player.rollout_episodes(
                task,
                episodes,
                group_size=replies,
                max_tokens=own.max_tokens or 1,
                temperature=own.temperature or 0.0,
                seed=("eval", config.seed.eval, name),
                entropies=tokenizer is not None and config.samples.eval != 0,
            )
        result.metrics.update(summarize(rollouts, f"eval/{name}", replies))
        result.rewards[name] = [rollout.reward for rollout in rollouts]
        if tokenizer is not None:
            result.samples.extend(eval_samples(tokenizer, name, rollouts, replies, config.samples.eval))
    return result


def warn_of_cut_replies(metrics: dict[str, float], config: Config) -> None:
    """Name the key that limits a task's replies if many of them were cut off, because what is cut off counts as wrong."""
    for name in config.eval.tasks or []:
        share, limit = metrics.get(eval_metric(name, TRUNCATED), 0.0), config.eval.of(name).max_tokens
        if share > MOST_TRUNCATED:
            key = "eval.max_tokens" if config.eval.tasks == [name] else f"eval.per_task.{name}.max_tokens"
            tqdm.write(
                f"warning: {share:.0%} of the evaluated replies on {name} were cut off at {limit} tokens and count as they are; raise {key}=",
                file=sys.stderr,
            )


def base_key(config: Config) -> str:
    """Names the evaluation of a base model by everything that it depends on, contents of files included, and by nothing that only training depends on."""
    data = to_plain(config)
    parts = {key: data[key] for key in ("model", "task", "eval")}
    parts |= {
        "seed": config.seed.eval,
        "engine": data["rollout"]["engine"],
        "dtype": data["rollout"]["dtype"],
        "contents": contents(config),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def evaluate_base(
    player: Player, tasks: dict[str, Task], config: Config, grid: Path | None, tokenizer: PreTrainedTokenizerBase | None = None
) -> Evaluation:
    """The evaluation of the base model, at step 0. Warns if many replies were cut off. tokenizer: see `evaluate`.

    In a grid the first cell stores it in `grid`/base/, samples included. Cells with the same model, tasks and seeds read it; cells that start
    at the same time wait for the first.
    """
    evaluation = evaluate(player, tasks, config, tokenizer) if grid is None else _shared(player, tasks, config, grid, tokenizer)
    warn_of_cut_replies(evaluation.metrics, config)
    return evaluation


def _shared(player: Player, tasks: dict[str, Task], config: Config, grid: Path, tokenizer: PreTrainedTokenizerBase | None) -> Evaluation:
    stored = grid / "base" / f"{base_key(config)}.json"
    stored.parent.mkdir(parents=True, exist_ok=True)
    with open(stored.with_suffix(".lock"), "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: every cell evaluates for itself
            return evaluate(player, tasks, config, tokenizer)
        known = read_json(stored)
        if known.keys() >= {"metrics", "rewards"}:
            tqdm.write(f"base model: evaluation read from {stored}")
            return Evaluation(known["metrics"], known["rewards"], _base_samples(stored.with_suffix(".parquet")))
        evaluation = evaluate(player, tasks, config, tokenizer)
        fault = write_samples(stored.with_suffix(".parquet"), pack(evaluation.samples)) if evaluation.samples else None
        if fault is not None:
            tqdm.write(f"warning: {fault}; other cells have no samples of the base model")
        write_json(stored, {"metrics": evaluation.metrics, "rewards": evaluation.rewards})
        return evaluation


def _base_samples(path: Path) -> list[Sample]:
    """The samples of a shared evaluation; none, with a warning, if the cell that made it kept none or if they are damaged."""
    try:
        return read_samples(path) if path.is_file() else []
    except UserError as error:
        tqdm.write(f"warning: {error}")
        return []
