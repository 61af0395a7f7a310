"""pass@1 and mean reward of a task's evaluation episodes."""

import fcntl
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from mth.config.schema import Config
from mth.config.stored import to_plain
from mth.foundations.files import read_json, write_json
from mth.rollout.player import Player, Rollout
from mth.tasks import choose_eval
from mth.tasks.base import Task


def is_right(reward: float) -> bool:
    """A reply passes when its reward is 1 (Alphabet Sort: every turn exact)."""
    return reward >= 1 - 1e-9


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def summarize(rollouts: Sequence[Rollout], prefix: str) -> dict[str, float]:
    """Means over rollouts: pass_at_1, every score of the task, completion length in tokens, share that was cut off."""
    scores = {key: mean([rollout.scores[key] for rollout in rollouts]) for key in rollouts[0].scores}
    return {
        f"{prefix}/pass_at_1": mean([float(is_right(rollout.reward)) for rollout in rollouts]),
        **{f"{prefix}/{key}": value for key, value in scores.items()},
        f"{prefix}/completion_tokens": mean([rollout.completion_tokens for rollout in rollouts]),
        f"{prefix}/truncated_share": mean([float(rollout.truncated) for rollout in rollouts]),
    }


def evaluate(player: Player, tasks: dict[str, Task], config: Config) -> dict[str, float]:
    """Metrics of one sampled reply per evaluation episode of every task. The seed does not contain the step, so every evaluation draws the same noise."""
    metrics: dict[str, float] = {}
    for name, task in tasks.items():
        episodes = choose_eval(task, config.eval.samples, config.seed.eval)
        seed = ("eval", config.seed.eval, name)
        rollouts = player.rollout_episodes(
            task, episodes, group_size=1, max_tokens=config.eval.max_tokens or 1, temperature=config.eval.temperature, seed=seed
        )
        metrics |= summarize(rollouts, f"eval/{name}")
    return metrics


def base_key(config: Config) -> str:
    """Names the evaluation of a base model by everything that it depends on, and by nothing that only training depends on."""
    data = to_plain(config)
    parts = {key: data[key] for key in ("model", "task", "eval")}
    parts |= {"seed": config.seed.eval, "engine": data["rollout"]["engine"], "dtype": data["rollout"]["dtype"]}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def evaluate_base(player: Player, tasks: dict[str, Task], config: Config, grid: Path | None) -> dict[str, float]:
    """Metrics of the base model, at step 0.

    In a grid the first cell stores them in `grid`/base/. Cells with the same model, tasks and seeds read them; cells that start at the same
    time wait for the first.
    """
    if grid is None:
        return evaluate(player, tasks, config)
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
            return known
        metrics = evaluate(player, tasks, config)
        write_json(stored, metrics)
        return metrics
