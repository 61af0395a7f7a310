"""Tasks for base models: what is asked, what counts, and that nothing held out is ever trained or shown."""

import pytest

from mth.config.cells import cells_of
from mth.foundations.errors import UserError
from mth.tasks import load_tasks
from mth.tasks.fewshot import exact

TASKS = ("multiplication", "names", "addition", "weekdays")


def task_of(name, *overrides):
    (cell,) = cells_of([f"task={name}", "task.train_rows=500", *overrides])
    return load_tasks(cell.config)[0], cell.config


def pair(episode):
    """The last line of a prompt, which asks, and the answer."""
    return episode.turns[0].rpartition("\n")[2], episode.truth[0]


def test_what_the_tasks_ask():
    asked = {name: [pair(episode) for part in (task.train, task.eval) for episode in part] for name in TASKS for task in [task_of(name)[0]]}
    assert {name: len(pairs) for name, pairs in asked.items()} == {"multiplication": 396, "names": 1524, "addition": 837, "weekdays": 199}
    for question, answer in asked["multiplication"]:
        a, b = map(int, question.removesuffix(" =").split(" * "))
        assert (2 <= a <= 9, 11 <= b <= 60, answer) == (True, True, str(a * b))
    for question, answer in asked["addition"]:
        assert answer == str(sum(map(int, question.removesuffix(" =").split(" + "))))
    assert ("8 days after Wednesday is", "Thursday") in asked["weekdays"]
    assert ("7 days after Sunday is", "Sunday") in asked["weekdays"]
    for question, answer in asked["names"]:
        shown = question.removeprefix("Names: ").removesuffix(". Sorted by last name:").split(", ")
        lasts = [name.split()[1] for name in answer.split(", ")]
        assert sorted(shown) == sorted(answer.split(", ")) and lasts == sorted(lasts) and 2 <= len(set(lasts)) == len(shown) <= 3


@pytest.mark.parametrize("name", TASKS)
def test_nothing_held_out_is_trained_or_shown_as_an_example(name):
    task, _ = task_of(name)
    trained, held = ({pair(episode)[0] for episode in part} for part in (task.train, task.eval))
    shown = {question for question, _ in task.worked}
    assert not trained & held and not shown & (trained | held)
    assert len(trained) == len(task.train) and len(held) == len(task.eval)
    if name == "names":
        last = [{n.split()[1] for e in part for n in e.truth[0].split(", ")} for part in (task.train, task.eval)]
        assert not last[0] & last[1], "a last name is in both parts"
    whole, _ = task_of(name, "task.holdout=false")
    assert {pair(e)[0] for e in whole.eval} == trained | held == {pair(e)[0] for e in whole.train}


@pytest.mark.parametrize("name", TASKS)
def test_every_prompt_begins_with_the_same_four_examples(name):
    task, config = task_of(name)
    assert (config.task.prompt_format.name, config.task.shots, config.task.stop, task.stop) == ("raw", 4, "\n", "\n")
    heads = {episode.turns[0].rpartition("\n")[0] for part in (task.train, task.eval) for episode in part}
    (head,) = heads
    assert head.split("\n") == [f"{question} {answer}" for question, answer in task.worked]
    assert all(episode.raw and not episode.system for episode in task.eval)


def test_the_answer_is_the_first_line():
    task, _ = task_of("multiplication")
    episode = task.eval[0]
    truth = episode.truth[0]
    right = [truth, f" {truth}", f" {truth} ", f"{truth}\n5 * 5 = 25"]
    wrong = ["", f"{truth}0", f"= {truth}", f"{truth}.", f"\n\nwell\n{truth}"]
    assert [exact(episode, [reply])["reward"] for reply in [*right, *wrong]] == [1.0] * len(right) + [0.0] * len(wrong)
    assert exact(episode, []) == {"reward": 0.0}


def test_a_task_that_makes_its_questions_reads_none():
    with pytest.raises(UserError, match=r"task\.path=rows\.jsonl: multiplication makes its own questions; leave task\.path out"):
        task_of("multiplication", "task.path=rows.jsonl")
