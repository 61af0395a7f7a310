"""Generators of reasoning-gym as tasks: a split without overlap, the library's own scorer, one line for what it does not have."""

import pytest

from mth.config.choices import PromptFormat
from mth.config.schema import TaskConfig
from mth.foundations.errors import UserError
from mth.tasks import build_task
from mth.tasks.base import prompt_of
from mth.tasks.reasoning_gym import extraction_prompt
from tests.conftest import make_config


def task_of(dataset, rows=64, **keys):
    return build_task(TaskConfig(f"reasoning_gym_{dataset}", dataset=dataset, train_rows=rows, **keys))


@pytest.mark.parametrize("dataset", ["chain_sum", "letter_counting", "spell_backward", "countdown", "leg_counting"])
def test_a_generator_is_a_task(dataset):
    task = task_of(dataset)
    assert task.name == f"reasoning_gym_{dataset}" and len(task.eval) == 16
    trained, held = ({prompt_of(episode) for episode in part} for part in (task.train, task.eval))
    assert not trained & held
    assert {prompt_of(e) for e in task_of(dataset, data_seed=1).train} != trained
    assert [prompt_of(e) for e in task_of(dataset).train] == [prompt_of(e) for e in task.train]
    right = [task.score(episode, [f"so <answer>{episode.truth[0]}</answer>"]) for episode in task.train[:4]]
    assert all(score == {"reward": 1.0, "exact": 1.0} for score in right)
    assert task.score(task.train[0], ["<answer>?</answer>"])["exact"] == 0.0
    assert task.train[0].system == extraction_prompt()


def test_options_reach_the_generator_and_few_questions_are_not_trained_twice():
    small = task_of("chain_sum", rows=400, options={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}, system="")
    questions = [episode.turns[0] for episode in (*small.train, *small.eval)]
    assert len(questions) == len(set(questions)) < 300
    assert all(question.count("+") + question.count("- ") == 1 for question in questions)
    assert small.train[0].system == ""


def test_the_scorer_of_the_library_gives_part_of_the_reward():
    task = task_of("chain_sum")
    episode = task.train[0]
    assert 0 < task.score(episode, [f"the answer is {episode.truth[0]}"])["reward"] < 1 == task.score(episode, episode.truth)["reward"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"dataset": "chain_sums"}, r"task\.dataset=chain_sums: reasoning-gym has no generator of this name; did you mean chain_sum\?"),
        (
            {"dataset": "chain_sum", "options": {"terms": 3}},
            r"task\.options\.terms is unknown; the options of task\.dataset=chain_sum are: .*max_terms",
        ),
        (
            {"dataset": "chain_sum", "options": {"min_terms": 9, "max_terms": 2}},
            r"task\.options of task\.dataset=chain_sum: reasoning-gym refuses",
        ),
        ({"dataset": "chain_sum", "options": {"min_terms": "two"}}, r"task\.options of task\.dataset=chain_sum: reasoning-gym refuses"),
        ({"dataset": "composite"}, r"reasoning-gym refuses them \(Must specify at least one dataset"),
    ],
)
def test_what_the_library_refuses_is_one_line(keys, message):
    with pytest.raises(UserError, match=message) as caught:
        build_task(TaskConfig("reasoning_gym_x", train_rows=8, **keys))
    assert "\n" not in str(caught.value)


def test_the_name_says_library_and_generator():
    config = make_config(task={"name": "reasoning_gym", "dataset": "chain_sum"}, eval={"tasks": ["reasoning_gym", "arithmetic"]})
    assert (config.task.name, config.eval.tasks) == ("reasoning_gym_chain_sum", ["reasoning_gym_chain_sum", "arithmetic"])
    with pytest.raises(UserError, match=r"task=reasoning_gym needs task\.dataset=chain_sum"):
        make_config(task={"name": "reasoning_gym"})


def test_worked_examples_are_shown_and_neither_trained_nor_evaluated():
    keys = {"prompt_format": PromptFormat.raw, "shots": 2, "stop": "\n", "system": ""}
    plain, shown = task_of("chain_sum", system=""), task_of("chain_sum", **keys)
    assert len(shown.train) == len(plain.train) - 2 and len(shown.eval) == len(plain.eval)
    first, second, third = plain.train[:3]
    before = f"{first.turns[0]} {first.truth[0]}\n{second.turns[0]} {second.truth[0]}\n"
    assert shown.train[0].turns == (before + third.turns[0],)
