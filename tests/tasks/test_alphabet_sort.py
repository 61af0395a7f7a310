"""Alphabet Sort: the text of the prompts, the truth, and the reward against worked examples."""

import difflib
import random

import pytest

from mth.config.schema import TaskConfig
from mth.tasks import alphabet_sort, build_task
from mth.tasks.alphabet_sort import Draw, Shape, build_episodes, score, split_name, truths, turn_reward, user_turns
from mth.tasks.base import Episode
from tests.tasks.rows import write_rows

ROWS = [["Ada Lovelace", "Alan Turing", "Ada Lovelace", "Grace Hopper", "Kurt Goedel", "Emmy Noether", "John von Neumann", "Max Born"]]


def test_names_split_at_the_second_capital():
    assert split_name("AdaLovelace") == ("Ada", "Lovelace")
    assert split_name("Plato") == ("Plato", "")
    assert split_name("JohnvonNeumann") == ("Johnvon", "Neumann")


def test_truth_is_cumulative_sorted_and_marked():
    draw = Draw((("GraceHopper", "AdaLovelace"), ("AlanTuring",)), by_first=False)
    assert truths(draw) == [["GraceHopper", "AdaLovelace"], ["GraceHopper", "AdaLovelace", "AlanTuring // new name!"]]
    assert truths(Draw(draw.names, by_first=True))[1] == ["AdaLovelace", "AlanTuring // new name!", "GraceHopper"]


def test_prompt_text():
    draw = Draw((("AdaLovelace",), ("AlanTuring",), ("MaxBorn",)), by_first=True)
    first, second, third = user_turns(draw, Shape(3, 3, 1, 1), random.Random(0))
    assert first == (
        "Sort these names in alphabetical order by FIRST name: AdaLovelace\n\n"
        "Use exactly this format:\n<alphabetical_sorted>\nName1\n</alphabetical_sorted>"
    )
    head, block = second.split("\n\nUse exactly this format:\n")
    assert head == (
        "Now sort ALL of these names alphabetically by FIRST name: AlanTuring\n\n"
        "These are in addition to the prior list. Mark any NEW names (that weren't in the prior list) with `// new name!` at the end."
    )
    assert block.startswith("<combined_alphabetical_sorted>\nName1")
    assert block.endswith("// new name!\n</combined_alphabetical_sorted>")
    assert third.endswith("`// new name!` at the end. Follow the same format as before.")


def test_draws_come_in_the_documented_order():
    """One generator, per row: turns, names per turn, key, then the shuffles and template sizes of the text."""
    rng = random.Random(1337420)
    turns = rng.randint(2, 2)
    counts = [rng.randint(1, 5) for _ in range(turns)]
    by_first = rng.choice([True, False])
    names = ["AdaLovelace", "AlanTuring", "GraceHopper", "KurtGoedel", "EmmyNoether", "JohnvonNeumann", "MaxBorn"]
    row = [*ROWS[0], "Carl Gauss", "Leonhard Euler", "Sofya Kovalevskaya"]
    (episode,) = build_episodes([row], Shape(), 1337420)
    assert ("FIRST" in episode.turns[0]) == by_first
    assert sorted(episode.truth[0].split("\n")) == sorted(names[: counts[0]])
    assert len(episode.truth[1].split("\n")) == sum(counts)


def test_rows_with_too_few_names_are_skipped_after_their_draw():
    few = ["Ada Lovelace"]
    alone = list(build_episodes([*ROWS * 3], Shape(), 7))
    mixed = list(build_episodes([few, *ROWS * 3], Shape(), 7))
    assert all(episode.uid != "row0" for episode in mixed)
    assert [e.turns for e in mixed] != [e.turns for e in alone]  # the skipped row consumed draws


TRUTH = "AdaLovelace\nAlanTuring"


def block(text, tag="alphabetical_sorted"):
    return f"<{tag}>\n{text}\n</{tag}>"


def test_reward_by_worked_examples():
    assert turn_reward(block(TRUTH), TRUTH, 0) == 1.0
    assert turn_reward("thinking...\n" + block("  adalovelace \n\n ALANTURING "), TRUTH, 0) == 1.0
    assert turn_reward(TRUTH, TRUTH, 0) == 0.0  # no block
    assert turn_reward(block(TRUTH, "combined_alphabetical_sorted"), TRUTH, 0) == 0.0
    assert turn_reward(block(""), TRUTH, 0) == 0.0
    swapped = turn_reward(block("AlanTuring\nAdaLovelace"), TRUTH, 0)
    # 'alanturing\nadalovelace' against 'adalovelace\nalanturing': the longest common block is 'adalovelace', 2 * 12 / 44 matched at most
    expected = difflib.SequenceMatcher(None, "alanturing\nadalovelace", "adalovelace\nalanturing").ratio() ** 4
    assert swapped == pytest.approx(expected)
    assert 0 < swapped < 0.2


def test_reward_ratio_by_hand():
    # 'ab' against 'abcd': 2 M / T = 2 * 2 / 6, to the 4th power
    assert turn_reward(block("ab"), "abcd", 0) == pytest.approx((4 / 6) ** 4)


def test_several_blocks_must_improve_strictly():
    worse, right = block("AdaLovelace"), block(TRUTH)
    assert turn_reward(worse + right, TRUTH, 0) == 1.0
    assert turn_reward(right + worse, TRUTH, 0) == 0.0
    assert turn_reward(right + right, TRUTH, 0) == 0.0


def test_episode_reward_is_the_mean_and_missing_turns_count_zero():
    episode = Episode("e", ("a", "b"), (TRUTH, TRUTH + "\nMaxBorn // new name!"))
    first, second = block(TRUTH), block(TRUTH + "\nMaxBorn // new name!", "combined_alphabetical_sorted")
    assert score(episode, [first, second]) == {"reward": 1.0, "turn_1": 1.0, "turn_2": 1.0}
    assert score(episode, [first]) == {"reward": 0.5, "turn_1": 1.0, "turn_2": 0.0}
    unmarked = block(TRUTH + "\nMaxBorn", "combined_alphabetical_sorted")
    assert 0 < score(episode, [first, unmarked])["turn_2"] < 1


def test_held_out_split_is_disjoint_and_optional():
    task = build_task(TaskConfig(train_rows=200))
    assert not {e.uid for e in task.train} & {e.uid for e in task.eval}
    assert task.eval
    shared = build_task(TaskConfig(train_rows=200, holdout=False))
    assert shared.train == shared.eval


def test_shipped_names_are_unambiguous():
    for row in alphabet_sort.embedded_rows(50, Shape()):
        first, last = zip(*(name.split() for name in row), strict=True)
        assert len(set(first)) == len(set(last)) == len(row)


def test_alphabet_sort_has_the_rows_asked_for():
    task = build_task(TaskConfig(train_rows=64))
    assert (len(task.train), len(task.eval)) == (64, 1024)


def test_names_file_for_alphabet_sort(tmp_path):
    write_rows(tmp_path / "names.jsonl", [{"names": [f"A{c} B{c}" for c in "abcdefghijkl"]} for _ in range(10)])
    task = build_task(TaskConfig(path=str(tmp_path / "names.jsonl")))
    assert len(task.train) + len(task.eval) == 10
