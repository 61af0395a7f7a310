"""What a step is measured by: rewards and lengths of its rollouts, seconds per phase, memory."""

import resource
import time
from collections.abc import Callable

import torch

from mth.rollout.player import Rollout
from mth.runs.metrics import REWARD
from mth.training.advantages import no_signal
from mth.training.evaluation import is_right, mean


def rollout_metrics(rollouts: list[Rollout], rewards: torch.Tensor) -> dict[str, float]:
    """What the rollouts of a step [P, G] look like."""
    lengths = [rollout.completion_tokens for rollout in rollouts]
    return {
        REWARD: rewards.mean().item(),
        "reward/std": rewards.std(correction=0).item(),
        "reward/pass": mean([float(is_right(rollout.reward)) for rollout in rollouts]),
        "groups/no_signal_share": no_signal(rewards).double().mean().item(),
        "completion/tokens_mean": mean(lengths),
        "completion/tokens_max": float(max(lengths)),
        "completion/truncated_share": mean([float(rollout.truncated) for rollout in rollouts]),
        **{f"score/{key}": mean([rollout.scores[key] for rollout in rollouts]) for key in rollouts[0].scores if key != "reward"},
    }


class Clock:
    """Seconds per phase of one step. On a GPU a lap waits for the device, so that a phase pays for its own work."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.laps[name] = now - self.last
        self.last = now


def timed(work: Callable[[], dict[str, float]], key: str) -> dict[str, float]:
    """The metrics that `work` returns, and how many seconds it took under `key`."""
    start = time.perf_counter()
    metrics = work()
    return metrics | {key: time.perf_counter() - start}


def peak_memory(device: torch.device) -> int:
    """Peak bytes of this process: allocated on the GPU that trains, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def passes(metrics: dict[str, float]) -> dict[str, str]:
    """pass@1 of each evaluated task, for the progress bar."""
    return {key.split("/")[1]: f"{value:.3f}" for key, value in metrics.items() if key.startswith("eval/") and key.endswith("/pass_at_1")}
