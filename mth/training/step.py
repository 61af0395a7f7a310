"""One step of GRPO: generate, score, update."""

from functools import partial

import torch

from mth.training.advantages import group_advantages
from mth.training.batches import collate
from mth.training.learner import Learner
from mth.training.metrics import Clock, peak_memory, rollout_metrics
from mth.training.prompts import prompts
from mth.training.update import update


def train_step(run: Learner, step: int) -> dict[str, float]:
    """Train on the rollouts of one step (1, 2, ...). Returns the step's metrics and leaves them in `run.progress`, to be logged."""
    parts, progress, config = run.parts, run.progress, run.parts.config
    device, group_size = parts.policy.model.device, config.rollout.group_size
    clock = Clock(device)
    sent = run.sync(progress.engine_values)
    clock.lap("sync")
    episodes, seed = prompts(parts.task, config, step), ("rollout", config.seed.train, step)
    rollouts = parts.player.rollout_episodes(
        parts.task, episodes, group_size=group_size, max_tokens=config.rollout.max_tokens, temperature=config.rollout.temperature, seed=seed
    )
    clock.lap("rollout")
    rewards = torch.tensor([rollout.reward for rollout in rollouts], dtype=torch.float64).view(-1, group_size)  # [P, G]
    advantages = group_advantages(rewards, config.algorithm.advantage)
    batches = collate(rollouts, advantages.flatten().tolist(), config.train.micro_batch_tokens, device, run.attention_cost)
    if progress.engine_values is not None:
        progress.engine_values = parts.ticket.values.detach().clone()
    observe = None if run.collector is None else partial(run.collector.add, step)
    metrics = rollout_metrics(rollouts, rewards)
    metrics |= update(parts.policy, parts.ticket, run.optimizer, batches, config, run.base_values, observe)
    clock.lap("update")
    tokens = sum(rollout.completion_tokens for rollout in rollouts)
    metrics |= {f"seconds/{phase}": seconds for phase, seconds in clock.laps.items()} | ({"sync/bytes": float(sent)} if sent else {})
    metrics |= {"tokens_per_second": tokens / sum(clock.laps.values()), "peak_memory_bytes": float(peak_memory(device))}
    progress.step, progress.unlogged = step, metrics
    return metrics
