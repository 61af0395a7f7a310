"""Groups of equal rewards cost no update: the gradient is the same without them."""

from dataclasses import replace

import pytest
import torch

from mth.foundations.user_code import pinned
from mth.models.load import load_policy
from mth.rollout import build_engine
from mth.rollout.player import ChatRenderer, Player
from mth.runs.folder import RunFolder
from mth.runs.journal import read_journal
from mth.tasks import load_tasks
from mth.tickets.draw import draw_ticket
from mth.tickets.optimizer import build_optimizer
from mth.training.advantages import group_advantages
from mth.training.batches import collate, mean_entropies
from mth.training.logprobs import completion_logprobs
from mth.training.loop import train
from mth.training.prompts import prompts
from mth.training.rows import ALONE
from mth.training.sharing import packing_of
from mth.training.step import trained_rollouts
from mth.training.update import update
from tests.conftest import make_config

REWARDS = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0], [0.5, 0.5, 0.25, 1]], dtype=torch.float64)


def test_what_the_update_computes():
    config = make_config()
    assert trained_rollouts(REWARDS, config) == [4, 5, 6, 7, 12, 13, 14, 15]
    assert trained_rollouts(REWARDS[[0, 2]], config) == [0, 1, 2, 3]  # one group stays, for the metrics
    penalized = replace(config, algorithm=replace(config.algorithm, kl_coef=0.1))
    assert trained_rollouts(REWARDS, penalized) == list(range(16))  # the penalty has a gradient in every group


@pytest.mark.parametrize(
    ("loss", "every"),
    [("-ratio * advantages", False), ("-ratio * advantages + (ratio - 1) ** 2", True), ("(ratio - advantages).abs()", True)],
)
def test_a_rule_of_the_users_own_may_need_every_group(tmp_path, monkeypatch, loss, every):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rule.py").write_text(f"def rule(ratio, advantages, config):\n    return {loss}, ratio < 0\n")
    config = make_config(algorithm={"source": pinned("rule.py:rule", "algorithm.source")})
    assert len(trained_rollouts(REWARDS, config)) == (16 if every else 8)


@pytest.mark.parametrize("shared", [True, False])
def test_the_gradient_is_the_same_without_them(shared):
    config = make_config(train={"batch_size": 16}, model={"device": "cpu"})
    task, _ = load_tasks(config)
    policy = load_policy(config.model)
    ticket = draw_ticket(policy.model, config)
    player = Player(build_engine(policy, ticket, config.rollout), ChatRenderer(policy.tokenizer))
    rollouts = player.rollout_episodes(task, prompts(task, config, 1), group_size=4, max_tokens=24, temperature=1.0, seed=("x",))
    advantages = group_advantages(REWARDS, config.algorithm.advantage).flatten()
    tokens, packing = sum(rollout.completion_tokens for rollout in rollouts), packing_of(policy.model) if shared else ALONE
    start, found = ticket.values.detach().clone(), {}
    for name, chosen in {"all": list(range(16)), "trained": trained_rollouts(REWARDS, config)}.items():
        batches = collate([rollouts[i] for i in chosen], advantages[chosen].tolist(), 16384, policy.model.device, packing)
        metrics = update(policy, ticket, build_optimizer(ticket, config.optimizer, 1e-3), batches, tokens, config)
        found[name] = metrics, ticket.values.grad.clone()
        entropies = mean_entropies([rollouts[i] for i in chosen], batches)
        counts = [rollouts[i].completion_tokens for i in chosen]
        total = sum(entropies[index] * count for index, count in enumerate(counts))
        assert metrics["entropy"] == pytest.approx(total / sum(counts), rel=1e-4)
        ticket.values.data.copy_(start)
        ticket.write()
    (every, gradient), (fewer, same) = found["all"], found["trained"]
    for index, played in enumerate(rollouts[i] for i in chosen):  # each reply has its own, as if it were computed alone
        ids, mask = torch.tensor([played.ids]), torch.tensor([played.loss_mask])
        with torch.no_grad():
            assert entropies[index] == pytest.approx(completion_logprobs(policy.model, ids, mask, 1.0)[1].mean().item(), abs=1e-5)
    torch.testing.assert_close(same, gradient, rtol=1e-4, atol=1e-7)
    assert gradient.norm() > 0
    assert fewer["loss"] == pytest.approx(every["loss"], rel=1e-4, abs=1e-7)
    left = [rollouts[i].completion_tokens for i in range(16) if i not in trained_rollouts(REWARDS, config)]
    assert (every["update/left_out_share"], fewer["update/left_out_share"]) == (0, pytest.approx(sum(left) / tokens))


def test_a_step_without_any_signal_still_counts(tmp_path):
    """No reply of one token has an answer: all rewards are 0. Only weight decay moves the values."""
    summary = train(make_config(rollout={"max_tokens": 1}, train={"steps": 1}), tmp_path / "run", tmp_path)
    assert summary.status == "finished"
    metrics = read_journal(RunFolder(tmp_path / "run").path)[-1].metrics
    assert (metrics["groups/no_signal_share"], metrics["grad_norm"], metrics["loss"]) == (1, 0, 0)
    assert metrics["update/left_out_share"] == pytest.approx(0.75)
    assert metrics["entropy"] > 0 and metrics["update_applied"] == 1
