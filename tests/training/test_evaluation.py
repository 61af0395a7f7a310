"""Evaluations: each task by its own limits, with errors over prompts, shared by the cells of a grid."""

import json
import math
from dataclasses import replace
from functools import partial

import pytest

from mth.rollout import build_engine
from mth.rollout.player import ChatRenderer, Player, Rollout, score_means
from mth.runs.metrics import of_prompts
from mth.tasks import load_tasks
from mth.tickets.draw import model_parameters
from mth.tickets.ticket import Ticket
from mth.training.evaluation import evaluate, evaluate_base, summarize, warn_of_cut_replies
from tests.conftest import make_config

OWN = {"alphabet_sort": {"max_tokens": 70, "temperature": 0.0, "samples": 3}}


class FakePlayer:
    """Answers every second prompt right, and remembers how it was asked."""

    def __init__(self):
        self.calls = []

    def rollout_episodes(self, task, episodes, *, group_size, max_tokens, temperature, seed, entropies):
        self.calls.append((task.name, len(episodes), max_tokens, temperature, seed))
        rows = [episode for episode in episodes for _ in range(group_size)]
        return [Rollout(episode, scores={"reward": float(i % 2)}, truncated=i == 0) for i, episode in enumerate(rows)]


@pytest.fixture
def config():
    return make_config(eval={"tasks": ["arithmetic", "alphabet_sort"], "samples": 5, "max_tokens": 40, "per_task": OWN})


def test_every_task_has_its_own_limits(config):
    player = FakePlayer()
    result = evaluate(player, load_tasks(config)[1], config)
    seed = config.seed.eval
    assert player.calls == [
        ("arithmetic", 5, 40, 1.0, ("eval", seed, "arithmetic")),
        ("alphabet_sort", 3, 70, 0.0, ("eval", seed, "alphabet_sort")),
    ]
    assert result.rewards == {"arithmetic": [0, 1, 0, 1, 0], "alphabet_sort": [0, 1, 0]}
    assert result.metrics["eval/arithmetic/pass_at_1"] == pytest.approx(0.4)
    assert result.metrics["eval/arithmetic/pass_at_1_error"] == pytest.approx(math.sqrt(0.4 * 0.6 / 4))
    assert result.metrics["eval/arithmetic/prompts"] == 5


def test_cut_replies_are_named_with_their_key(config, capsys):
    tasks = load_tasks(config)[1]
    evaluate_base(FakePlayer(), tasks, config, None)
    said = capsys.readouterr().err
    assert "20% of the evaluated replies on arithmetic were cut off at 40 tokens" in said
    assert "raise eval.per_task.arithmetic.max_tokens=" in said and "raise eval.per_task.alphabet_sort.max_tokens=" in said
    alone = make_config(eval={"tasks": ["arithmetic"]})
    warn_of_cut_replies({"eval/arithmetic/truncated_share": 0.06}, alone)
    assert "raise eval.max_tokens=" in capsys.readouterr().err
    warn_of_cut_replies({"eval/arithmetic/truncated_share": 0.05}, alone)
    assert not capsys.readouterr().err


def test_a_grid_evaluates_its_base_model_once(config, tmp_path):
    tasks, first, second = load_tasks(config)[1], FakePlayer(), FakePlayer()
    measured = evaluate_base(first, tasks, config, tmp_path)
    assert evaluate_base(second, tasks, config, tmp_path) == measured
    assert (len(first.calls), second.calls) == (2, [])
    stored = json.loads(next((tmp_path / "base").glob("*.json")).read_text())
    assert stored["rewards"] == measured.rewards
    other = replace(config, eval=replace(config.eval, max_tokens=41))
    evaluate_base(second, tasks, other, tmp_path)
    assert len(second.calls) == 2  # other limits, another evaluation


def test_scores_that_some_episodes_lack(config):
    """Alphabet Sort with one or two turns: an episode of one turn has no second."""
    episode = load_tasks(config)[0].eval[0]
    both, one = (
        Rollout(episode, scores={"reward": 1.0, "turn_1": 1.0, "turn_2": 0.5}),
        Rollout(episode, scores={"reward": 0.0, "turn_1": 0.0}),
    )
    assert score_means([one, both]) == score_means([both, one]) == {"reward": 0.5, "turn_1": 0.5, "turn_2": 0.5}
    assert summarize([one, both], "eval/alphabet_sort")["eval/alphabet_sort/turn_2"] == 0.5
    assert "eval/alphabet_sort/pass_at_1_error" not in summarize([one], "eval/alphabet_sort")


def test_several_replies_to_a_prompt_are_one_result(config):
    """Two replies to each prompt, one right and one wrong: every prompt has 0.5, so nothing varies over prompts."""
    twice = replace(config, eval=replace(config.eval, replies=2, per_task={}))
    result = evaluate(FakePlayer(), load_tasks(twice)[1], twice)
    assert result.rewards["arithmetic"] == [0.0, 1.0] * 5
    assert of_prompts(result.rewards["arithmetic"], 5) == {"reward": [0.5] * 5, "pass_at_1": [0.5] * 5}
    assert of_prompts([0.5, 1.0, 0.5, 0.5], 2) == {"reward": [0.75, 0.5], "pass_at_1": [0.5, 0.0]}
    assert of_prompts([0.5, 1.0], None) == {"reward": [0.5, 1.0], "pass_at_1": [0.0, 1.0]}
    assert result.metrics["eval/arithmetic/prompts"] == 5
    assert (result.metrics["eval/arithmetic/pass_at_1"], result.metrics["eval/arithmetic/pass_at_1_error"]) == (0.5, 0.0)


def test_the_first_of_several_replies_is_the_one_that_would_be_alone(small_policy):
    """The noise of a reply depends on its number, not on how many there are."""
    ticket = Ticket(model_parameters(small_policy.model), dict.fromkeys(model_parameters(small_policy.model)))
    config = make_config(eval={"samples": 3, "max_tokens": 6})
    player = Player(build_engine(small_policy, ticket, config.rollout), ChatRenderer(small_policy.tokenizer))
    task, episodes = load_tasks(config)[0], load_tasks(config)[0].eval[:3]
    ask = partial(player.rollout_episodes, task, episodes, max_tokens=6, temperature=1.0, seed=("eval", 1))
    assert [rollout.ids for rollout in ask(group_size=3)[::3]] == [rollout.ids for rollout in ask(group_size=1)]
