"""What a step is measured by."""

import pytest
import torch

from mth.config.schema import TaskConfig
from mth.rollout.player import Rollout, score_means
from mth.tasks.alphabet_sort import build
from mth.tasks.base import Episode
from mth.training.evaluation import summarize
from mth.training.metrics import rollout_metrics


def rollout_of(scores, tokens=3, truncated=False):
    mask = [False] + [True] * tokens
    return Rollout(Episode("e", ("q",), ("a",)), [0] * len(mask), mask, [0.0] * len(mask), ["r"], truncated, scores)


def test_a_score_is_averaged_over_the_episodes_that_have_it():
    """Alphabet Sort with one or two turns: an episode of one turn has no reward of a second one."""
    task = build(TaskConfig(name="alphabet_sort", min_turns=1, max_turns=2, train_rows=64))
    short, long = (next(e for e in task.train if len(e.turns) == turns) for turns in (1, 2))
    right = f"<alphabetical_sorted>{long.truth[0]}</alphabetical_sorted>"
    scores = [task.score(short, [short.truth[0]]), task.score(long, [right, "nothing"])]
    assert [sorted(each) for each in scores] == [["reward", "turn_1"], ["reward", "turn_1", "turn_2"]]
    for order in (scores, scores[::-1]):
        rollouts = [rollout_of(each) for each in order]
        means = score_means(rollouts)
        assert means == {"reward": 0.25, "turn_1": 0.5, "turn_2": 0.0}
        evaluated = summarize(rollouts, "eval/alphabet_sort")
        assert {key: evaluated[f"eval/alphabet_sort/{key}"] for key in means} == means
        rewards = torch.tensor([[each["reward"] for each in order]], dtype=torch.float64)
        metrics = rollout_metrics(rollouts, rewards)
        assert (metrics["score/turn_1"], metrics["score/turn_2"]) == (0.5, 0.0)
        assert "score/reward" not in metrics


def test_metrics_of_a_step_by_hand():
    rollouts = [rollout_of({"reward": reward}, tokens, tokens > 4) for reward, tokens in ((1.0, 2), (0.0, 4), (0.5, 6), (0.5, 8))]
    rewards = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    metrics = rollout_metrics(rollouts, rewards)
    assert metrics == {
        "reward/mean": 0.5,
        "reward/std": pytest.approx(0.125**0.5),
        "reward/pass": 0.25,
        "groups/no_signal_share": 0.5,
        "completion/tokens_mean": 5.0,
        "completion/tokens_max": 8.0,
        "completion/truncated_share": 0.5,
    }


def test_the_share_of_groups_without_signal_forgives_rounding_like_the_advantages():
    means = [sum(order) / 3 for order in ([0.1, 0.7, 0.4], [0.4, 0.7, 0.1])]
    assert means[0] != means[1]
    metrics = rollout_metrics([rollout_of({"reward": mean}) for mean in means], torch.tensor([means], dtype=torch.float64))
    assert metrics["groups/no_signal_share"] == 1.0
