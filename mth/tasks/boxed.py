"""Tasks with one question and an answer in \\boxed{}: GSM8K, MATH, MATH-500 and arithmetic (paper, section 3.1; prompts in appendix A.2)."""

from collections.abc import Mapping, Sequence

from mth.config.choices import Grader, Prompt
from mth.config.schema import TaskConfig
from mth.tasks.base import Episode, Played, Task
from mth.tasks.graders import begin_math_verify, environment, math_verify, strict

SYSTEM = {
    Prompt.paper: "You are a helpful mathematical AI assistant. Please reason step by step and put your final answer within \\boxed{}",
    Prompt.environment: "Please reason step by step, and put your final answer within \\boxed{}.",
}
TIMEOUTS = "grader_timeouts"


RAW_FORM = "Question: {}\nAnswer:"


def boxed_task(
    name: str, train: Sequence[Episode], held: Sequence[Episode], config: TaskConfig, solutions: Mapping[str, str] | None = None
) -> Task:
    """A task whose reward is the grade of `task.grader`.

    solutions: worked solution of training episodes, by uid. The first `task.shots` of these become the worked examples and are not trained.

    Its scores are the reward, the strict grade, and the grade of `task.grader`; with `task.every_grader` that of math_verify too. Where
    math_verify grades, `grader_timeouts` is 1 for an answer that reached `task.grader_timeout`, and the grade is then 0.
    """

    uses_library = config.grader is Grader.math_verify or config.every_grader

    def score_all(played: Sequence[Played]) -> list[dict[str, float]]:
        answers = _answers(played)
        scores = [{"strict": strict(*answer)} for answer in answers]
        if config.grader is Grader.environment:
            scores = [score | {"environment": environment(*answer)} for score, answer in zip(scores, answers, strict=True)]
        if uses_library:
            grades = math_verify(answers, config.grader_timeout)
            found = ({"math_verify": grade or 0.0, TIMEOUTS: float(grade is None)} for grade in grades)
            scores = [score | grade for score, grade in zip(scores, found, strict=True)]
        return [{"reward": score[config.grader.name]} | score for score in scores]

    def begin_scores(played: Sequence[Played]) -> None:
        begin_math_verify(_answers(played), config.grader_timeout)

    def score(episode: Episode, replies: Sequence[str]) -> dict[str, float]:
        return score_all([(episode, replies)])[0]

    solved = [episode for episode in train if episode.uid in (solutions or {})][: config.shots]
    worked = [(episode.turns[0], (solutions or {})[episode.uid]) for episode in solved]
    train = [episode for episode in train if episode not in solved] if solved else train
    begin = begin_scores if uses_library else None
    return Task(name, train, held, score, score_all, worked=worked, raw_form=RAW_FORM, begin_scores=begin)


def _answers(played: Sequence[Played]) -> list[tuple[str, str]]:
    """Pairs of reply and gold answer."""
    return [(replies[0] if replies else "", episode.truth[0]) for episode, replies in played]
