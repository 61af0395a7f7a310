"""What is said of a run: numbers of a step, and why it learned nothing."""

import pytest

from mth.runs.journal import Entry
from mth.training.shown import latest, why_nothing_was_learned
from tests.conftest import make_config


def step(number, reward, cut=0.0, no_signal=1.0, **more):
    metrics = {"reward/mean": reward, "completion/truncated_share": cut, "groups/no_signal_share": no_signal}
    return Entry(number, 0, metrics | more)


@pytest.mark.parametrize(
    ("entries", "line"),
    [
        (
            [step(1, 0.0, cut=1.0), step(2, 0.0, cut=0.9)],
            "every reward was 0 in all 2 steps, and 95% of the replies were cut off at rollout.max_tokens=24; raise rollout.max_tokens=",
        ),
        (
            [step(1, 0.0, cut=0.1)],
            "every reward was 0 in all 1 steps, though 90% of the replies ended by themselves; read them with mth.samples, and look at "
            "task.prompt_format=, task.shots= and task.grader=",
        ),
        (
            [step(1, 1.0), step(2, 0.5)],
            "in all 2 steps the replies to a prompt had equal rewards (0.750 on average): there was nothing to learn from; "
            "raise rollout.group_size= or rollout.temperature=, or take another task=",
        ),
        ([step(1, 0.0, cut=1.0), step(2, 0.1, cut=1.0, no_signal=0.9)], None),
        ([Entry(0, 0, {"eval/arithmetic/pass_at_1": 0.0})], None),
        ([], None),
    ],
)
def test_a_run_that_learned_nothing_says_what_was_seen_and_which_key_to_look_at(entries, line):
    assert why_nothing_was_learned(entries, make_config()) == line


def test_the_numbers_of_a_step_hold_the_newest_pass_at_1_and_say_of_which_step():
    entries = [Entry(0, 0, {"eval/a/pass_at_1": 0.5}), step(1, 0.25, tokens_per_second=1234.4)]
    assert latest(entries) == ["reward 0.250", "pass@1 0.500 (step 0)", "1,234 tokens/s"]
    entries.append(step(2, 0.5, **{"eval/a/pass_at_1": 0.75, "eval/b/pass_at_1": 0.25}))
    assert latest(entries) == ["reward 0.500", "a pass@1 0.750", "b pass@1 0.250"]
    assert latest([]) == []
