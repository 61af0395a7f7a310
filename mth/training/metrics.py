"""What a step is measured by: rewards and lengths of its rollouts, seconds per phase, memory."""

import resource
import time
from collections.abc import Callable

import torch

from mth.foundations.statistics import mean
from mth.rollout.player import Rollout, score_means
from mth.runs.metrics import CUT_IN_TRAINING, EVALUATION_SECONDS, NO_SIGNAL, REWARD
from mth.tasks.base import is_right
from mth.training.advantages import no_signal
from mth.training.evaluation import Evaluation


def rollout_metrics(rollouts: list[Rollout], rewards: torch.Tensor) -> dict[str, float]:
    """What the rollouts of a step [P, G] look like."""
    lengths = [rollout.completion_tokens for rollout in rollouts]
    return {
        REWARD: rewards.mean().item(),
        "reward/std": rewards.std(correction=0).item(),
        "reward/pass": mean([float(is_right(rollout.reward)) for rollout in rollouts]),
        NO_SIGNAL: no_signal(rewards).double().mean().item(),
        "completion/tokens_mean": mean(lengths),
        "completion/tokens_max": float(max(lengths)),
        CUT_IN_TRAINING: mean([float(rollout.truncated) for rollout in rollouts]),
        **{f"score/{key}": value for key, value in score_means(rollouts).items() if key != "reward"},
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


def timed(work: Callable[[], Evaluation]) -> Evaluation:
    """The evaluation that `work` returns, with the seconds it took."""
    start = time.perf_counter()
    evaluation = work()
    evaluation.metrics[EVALUATION_SECONDS] = time.perf_counter() - start
    return evaluation


def peak_memory(device: torch.device) -> int:
    """Peak bytes of this process: allocated on the GPU that trains, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
