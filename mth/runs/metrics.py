"""Every metric that a run logs, and what it means. Collapse, grids and figures depend on these names."""

from collections.abc import Sequence

from mth.foundations.statistics import mean
from mth.tasks.base import is_right

REWARD = "reward/mean"
NO_SIGNAL = "groups/no_signal_share"
CUT_IN_TRAINING = "completion/truncated_share"
ENTROPY = "entropy"
LOSS = "loss"
GRAD_NORM = "grad_norm"
PEAK_MEMORY = "peak_memory_bytes"
EVALUATION_SECONDS = "seconds/evaluation"
PHASES = ("rollout", "update", "sync", "evaluation")
PASS_AT_1, EVAL_REWARD = "pass_at_1", "reward"  # MLflow refuses `@` in a name
TRUNCATED = "truncated_share"
PROMPTS = "prompts"

# <task>, <score> and <phase> stand for a name.
METRICS = {
    "eval/<task>/pass_at_1": "share of evaluation episodes with reward 1",
    "eval/<task>/pass_at_1_error": "standard error of pass_at_1 over prompts",
    "eval/<task>/reward": "mean reward of the evaluation episodes",
    "eval/<task>/reward_error": "standard error of the mean reward over prompts",
    "eval/<task>/<score>": "mean of a further score of the task",
    "eval/<task>/prompts": "evaluated prompts",
    "eval/<task>/completion_tokens": "mean tokens sampled per episode",
    "eval/<task>/truncated_share": "share of episodes with a reply that was cut off",
    REWARD: "mean reward of the step's rollouts",
    "reward/std": "standard deviation of the step's rewards",
    "reward/pass": "share of the step's rollouts with reward 1",
    "score/<score>": "mean of a further score of the task, in training",
    NO_SIGNAL: "share of groups whose rewards are all equal",
    "completion/tokens_mean": "mean tokens sampled per rollout",
    "completion/tokens_max": "most tokens sampled in a rollout",
    CUT_IN_TRAINING: "share of rollouts with a reply that was cut off",
    LOSS: "loss per sampled token",
    "update/left_out_share": "share of sampled tokens that the update left out, because their groups have equal rewards",
    ENTROPY: "mean entropy of the policy per trained token, in nats",
    "ratio/mean": "mean importance ratio per trained token",
    "ratio/limited_share": "share of trained tokens whose ratio was clipped or dropped",
    "kl/rollout": "estimated KL divergence of the trainer's policy from the engine's, per trained token",
    "kl/reference": "estimated KL divergence from the base model, per token; only with algorithm.kl_coef",
    "mismatch/mean": "mean difference of log-probabilities between engine and trainer",
    "mismatch/max": "largest difference of log-probabilities between engine and trainer",
    GRAD_NORM: "norm of the gradient before clipping",
    "update_norm": "norm of the change of the active entries",
    "update_applied": "1 if the update was applied, 0 if its gradient was not finite",
    "learning_rate": "learning rate of the step",
    "seconds/<phase>": f"seconds of a phase: {', '.join(PHASES)}",
    "sync/bytes": "bytes sent to the engine; only if any",
    "tokens_per_second": "sampled tokens per second of the step",
    PEAK_MEMORY: "peak memory so far: allocated on the GPU, or resident memory of the process",
}


def eval_metric(task: str, key: str) -> str:
    """Name of a metric of an evaluated task."""
    return f"eval/{task}/{key}"


def with_error(key: str) -> str:
    """Name of the standard error of an evaluated metric."""
    return f"{key}_error"


def meaning(name: str) -> str | None:
    """What a logged metric means; None for a name that is not in METRICS."""
    if name in METRICS:
        return METRICS[name]
    first, last = name.split("/")[0], name.split("/")[-1]
    forms = [f"{first}/<task>/{last}", f"{first}/<task>/<score>"] if name.count("/") == 2 else [f"{first}/<score>", f"{first}/<phase>"]
    return next((METRICS[form] for form in forms if form in METRICS), None)


def of_prompts(rewards: Sequence[float], prompts: float | None) -> dict[str, list[float]]:
    """Reward and pass@1 of each prompt from the rewards of all its replies, which are adjacent: their means.

    prompts: how many there are; None in journals of versions that knew one reply to a prompt only.
    """
    size = len(rewards) // int(prompts) if prompts else 1
    passes = [float(is_right(reward)) for reward in rewards]
    found = {EVAL_REWARD: list(rewards), PASS_AT_1: passes}
    if size <= 1:
        return found
    return {key: [mean(values[start : start + size]) for start in range(0, len(values), size)] for key, values in found.items()}
