"""One step of GRPO: generate, score, update."""

from functools import partial

import torch

from mth.config.schema import Config
from mth.runs.samples import TRAIN
from mth.training.advantages import group_advantages, no_signal
from mth.training.batches import collate, mean_entropies
from mth.training.learner import Learner
from mth.training.losses import needs_every_group
from mth.training.metrics import Clock, peak_memory, rollout_metrics
from mth.training.prompts import prompts
from mth.training.samples import train_samples
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
    trained = trained_rollouts(rewards, config)
    chosen = [rollouts[i] for i in trained]
    batches = collate(chosen, advantages.flatten()[trained].tolist(), config.train.micro_batch_tokens, device, run.packing)
    tokens = sum(rollout.completion_tokens for rollout in rollouts)
    if progress.engine_values is not None:
        progress.engine_values = parts.ticket.values.detach().clone()
    observe = None if run.collector is None else partial(run.collector.add, step)
    metrics = rollout_metrics(rollouts, rewards)
    metrics |= update(parts.policy, parts.ticket, run.optimizer, batches, tokens, config, run.base_values, observe)
    clock.lap("update")
    metrics |= {f"seconds/{phase}": seconds for phase, seconds in clock.laps.items()} | ({"sync/bytes": float(sent)} if sent else {})
    metrics |= {"tokens_per_second": tokens / sum(clock.laps.values()), "peak_memory_bytes": float(peak_memory(device))}
    entropies = {trained[index]: entropy for index, entropy in mean_entropies(chosen, batches).items()} if config.samples.train else {}
    kept = train_samples(parts.policy.tokenizer, parts.task.name, rollouts, rewards, advantages, config.samples.train, entropies)
    run.samples.add(step, TRAIN, kept)
    progress.step, progress.unlogged = step, metrics
    return metrics


def trained_rollouts(rewards: torch.Tensor, config: Config) -> list[int]:
    """Indices of the rollouts that the update computes. rewards: [P, G], of P groups of G rollouts.

    A group of equal rewards has advantages of zero. Where its tokens then add nothing to the gradient, it is left out. One group always stays,
    so that entropy and mismatch are known at every step.
    """
    signal = ~no_signal(rewards)
    if needs_every_group(config.algorithm):
        signal[:] = True
    signal[0] |= not bool(signal.any())
    return signal.repeat_interleave(rewards.shape[1]).nonzero().flatten().tolist()
