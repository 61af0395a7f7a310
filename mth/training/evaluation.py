"""pass@1 and mean reward of a task's evaluation episodes."""

import fcntl
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm import tqdm

from mth.config.schema import Config
from mth.config.stored import to_plain
from mth.foundations.files import read_json, write_json
from mth.foundations.statistics import mean, standard_error
from mth.rollout.player import Player, Rollout, score_means
from mth.runs.contents import contents
from mth.runs.metrics import EVAL_REWARD, PASS_AT_1, TRUNCATED, eval_metric, with_error
from mth.tasks import choose_eval
from mth.tasks.base import Task, is_right

MOST_TRUNCATED = 0.05  # share of cut replies above which the base model's evaluation warns


@dataclass(frozen=True)
class Evaluation:
    """metrics: by name. rewards: task -> the mean reward of each of its prompts, in the order of `choose_eval`."""

    metrics: dict[str, float] = field(default_factory=dict)
    rewards: dict[str, list[float]] = field(default_factory=dict)


def means_of(values: Sequence[float], size: int) -> list[float]:
    """The mean of each `size` adjacent values."""
    return list(values) if size == 1 else [mean(values[start : start + size]) for start in range(0, len(values), size)]


def summarize(rollouts: Sequence[Rollout], prefix: str, replies: int = 1) -> dict[str, float]:
    """Means over rollouts: pass_at_1, every score of the task, completion length in tokens, share that was cut off.

    replies: to each prompt; the rollouts of a prompt are adjacent. pass_at_1 and reward come with their standard errors over prompts, if
    there are two prompts: the replies to one prompt count as one result, their mean.
    """
    passes = means_of([float(is_right(rollout.reward)) for rollout in rollouts], replies)
    rewards = means_of([rollout.reward for rollout in rollouts], replies)
    errors = {with_error(key): standard_error(values) for key, values in ((PASS_AT_1, passes), (EVAL_REWARD, rewards))}
    return {
        f"{prefix}/{PASS_AT_1}": mean(passes),
        **{f"{prefix}/{key}": value for key, value in score_means(rollouts).items()},
        **{f"{prefix}/{key}": value for key, value in errors.items() if value is not None},
        f"{prefix}/prompts": float(len(passes)),
        f"{prefix}/completion_tokens": mean([rollout.completion_tokens for rollout in rollouts]),
        f"{prefix}/{TRUNCATED}": mean([float(rollout.truncated) for rollout in rollouts]),
    }


def evaluate(player: Player, tasks: dict[str, Task], config: Config) -> Evaluation:
    """`eval.replies` sampled replies to each evaluation episode of every task. The seed does not contain the step, so every evaluation draws the same noise."""
    result = Evaluation()
    for name, task in tasks.items():
        own = config.eval.of(name)
        replies = own.replies or 1
        episodes = choose_eval(task, own.samples or 1, config.seed.eval)
        rollouts = player.rollout_episodes(
            task,
            episodes,
            group_size=replies,
            max_tokens=own.max_tokens or 1,
            temperature=own.temperature or 0.0,
            seed=("eval", config.seed.eval, name),
        )
        result.metrics.update(summarize(rollouts, f"eval/{name}", replies))
        result.rewards[name] = means_of([rollout.reward for rollout in rollouts], replies)
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


def evaluate_base(player: Player, tasks: dict[str, Task], config: Config, grid: Path | None) -> Evaluation:
    """The evaluation of the base model, at step 0. Warns if many replies were cut off.

    In a grid the first cell stores them in `grid`/base/. Cells with the same model, tasks and seeds read them; cells that start at the same
    time wait for the first.
    """
    evaluation = _shared(player, tasks, config, grid) if grid is not None else evaluate(player, tasks, config)
    warn_of_cut_replies(evaluation.metrics, config)
    return evaluation


def _shared(player: Player, tasks: dict[str, Task], config: Config, grid: Path) -> Evaluation:
    stored = grid / "base" / f"{base_key(config)}.json"
    stored.parent.mkdir(parents=True, exist_ok=True)
    with open(stored.with_suffix(".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: every cell evaluates for itself
            return evaluate(player, tasks, config)
        known = read_json(stored)
        if known:
            tqdm.write(f"base model: evaluation read from {stored}")
            return Evaluation(known["metrics"], known["rewards"])
        evaluation = evaluate(player, tasks, config)
        write_json(stored, asdict(evaluation))
        return evaluation
