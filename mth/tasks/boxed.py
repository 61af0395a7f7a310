"""Tasks with one question and an answer in \\boxed{}: GSM8K, MATH, MATH-500 and arithmetic (paper, section 3.1; prompts in appendix A.2)."""

from collections.abc import Sequence

from mth.config.choices import Grader, Prompt
from mth.config.schema import TaskConfig
from mth.tasks.base import Episode, Score
from mth.tasks.graders import math_verify, strict

SYSTEM = {
    Prompt.paper: "You are a helpful mathematical AI assistant. Please reason step by step and put your final answer within \\boxed{}",
    Prompt.environment: "Please reason step by step, then put your final answer within \\boxed{}.",
}


def boxed_score(config: TaskConfig, both: bool) -> Score:
    """A score whose reward is the grade of `task.grader`. both: also report the other grader."""

    def score(episode: Episode, replies: Sequence[str]) -> dict[str, float]:
        reply = replies[0] if replies else ""
        grades = {"strict": strict(reply, episode.truth[0])}
        if both or config.grader is Grader.math_verify:
            grades["math_verify"] = math_verify(reply, episode.truth[0], config.grader_timeout)
        return {"reward": grades[config.grader.name]} | grades

    return score
