"""Answers in a box: both graders are reported."""

from mth.config.choices import Grader, Prompt
from mth.config.schema import TaskConfig
from mth.tasks.boxed import boxed_score
from mth.tasks.math import math_episodes


def test_both_graders_are_reported_and_one_is_the_reward():
    episode = math_episodes([{"problem": "a", "answer": "1/2"}], Prompt.paper)[0]
    for grader, reward in ((Grader.strict, 0.0), (Grader.math_verify, 1.0)):
        score = boxed_score(TaskConfig(grader=grader, grader_timeout=20.0), both=True)
        assert score(episode, [r"\boxed{0.5}"]) == {"reward": reward, "strict": 0.0, "math_verify": 1.0}
