"""When a run counts as collapsed (paper sections 4.4 and 8 report that runs collapse more often at high sparsity)."""

import math
from collections.abc import Sequence

from mth.config.schema import CollapseConfig
from mth.runs.metrics import ENTROPY, GRAD_NORM, LOSS, REWARD

FALLEN = 0.9  # share of the best mean reward below which a reward has fallen


def collapse_reason(rewards: Sequence[float], entropies: Sequence[float], latest: dict[str, float], config: CollapseConfig) -> str | None:
    """Why the run has collapsed, or None.

    rewards, entropies: one mean per step so far. latest: metrics of the newest step. With w = config.window, a run has collapsed if
    1. loss, gradient norm, reward or entropy is not finite;
    2. the mean reward of the last w steps is below `reward_share` times the best mean of any w consecutive steps, and that best mean is
       above 0.02;
    3. the mean entropy of the last w steps is above `entropy_factor` times the mean of the first w steps, and the reward has fallen: the
       policy turns to noise. A policy that explores more and earns more is healthy;
    4. the mean entropy of the last w steps is below `min_entropy`, and the reward has fallen: the policy is stuck on a worse answer than it
       knew.
    The reward has fallen if its mean over the last w steps is below FALLEN times the best. Rules 2 to 4 need 2 w steps.
    """
    for key in (LOSS, GRAD_NORM, REWARD, ENTROPY):
        if key in latest and not math.isfinite(latest[key]):
            return f"{key} is {latest[key]}"
    window = config.window
    if len(rewards) < 2 * window:
        return None
    means = [sum(rewards[i : i + window]) / window for i in range(len(rewards) - window + 1)]
    best, last = max(means), means[-1]
    if best > 0.02 and last < config.reward_share * best:
        return f"mean reward of the last {window} steps is {last:.3f}, below {config.reward_share:g} of the best {best:.3f}"
    first_entropy, last_entropy = sum(entropies[:window]) / window, sum(entropies[-window:]) / window
    if last >= FALLEN * best:
        return None
    if last_entropy > config.entropy_factor * first_entropy:
        return f"mean entropy rose to {last_entropy:.3f} from {first_entropy:.3f} nats with reward {last:.3f} below the best {best:.3f}"
    if last_entropy < config.min_entropy:
        return f"mean entropy fell to {last_entropy:.2g} nats with reward {last:.3f} below the best {best:.3f}"
    return None
