"""A task of the user's own file or package: `task.source=path/to/file.py:build`. Checks what its code returns.

`docs/tasks.md` shows a whole file. The task is built, and its score tried on its first episodes, before anything is trained.
"""

from collections.abc import Sequence
from dataclasses import replace

from mth.config.schema import TaskConfig
from mth.foundations.errors import UserError, require
from mth.foundations.user_code import guarded, load, parse
from mth.tasks.base import Episode, Played, Respond, Score, ScoreAll, Task
from mth.tasks.scores import checked, probe

SOURCE = None
KEY = "task.source"
GRADER_KEY = "task.grader_source"


def build(config: TaskConfig) -> Task:
    """Call the user's function with the task's configuration.

    Raises UserError, in one line, if it cannot be called so, fails, or returns something else than a Task whose episodes can be scored.
    """
    require(config.source is not None, f"task=own needs {KEY}=path/to/file.py:build")
    source = str(config.source)
    make, shown = load(source, KEY), parse(source, KEY).shown
    if isinstance(make, Task):
        task = make
    else:
        refuse_signature(make, source, 1, "config")
        with guarded(source, KEY):
            task = make(config)
    require(
        isinstance(task, Task),
        f"{KEY}={shown} gives {_kind(task)} instead of a Task: return Task(name, train, eval, score) (mth.tasks.base)",
    )
    with guarded(source, KEY):
        parts = [_episodes(part, name, shown) for name, part in (("train", task.train), ("eval", task.eval))]
    if task.respond is not None:
        require(task.most_turns >= 1, f"{KEY}={shown}: a Task with respond= needs most_turns=, the most turns of a conversation")
    checked_task = replace(
        task,
        name=config.name,
        train=parts[0],
        eval=parts[1],
        score=_score(task, source, shown),
        score_all=None if task.score_all is None else _score_all(task, source, shown),
        respond=None if task.respond is None else _respond(task.respond, source, shown),
    )
    probe(checked_task)
    return checked_task


def regraded(task: Task, config: TaskConfig) -> Task:
    """The task with rewards of the user's grader, `task.grader_source`: the mean of grade(reply, truth) over the turns.

    The task's own scores stay beside it. Raises UserError as `build` does.
    """
    if config.grader_source is None:
        return task
    source, key = config.grader_source, GRADER_KEY
    grade, where = load(source, key), f"{key}={parse(source, key).shown}"
    refuse_signature(grade, source, 2, "reply, truth", key)

    def regrade(one: Played, scores: dict[str, float]) -> dict[str, float]:
        episode, replies = one
        padded = [*replies, *[""] * (len(episode.truth) - len(replies))]
        with guarded(source, key, f"cannot grade {episode.uid}"):
            grades = [grade(reply, truth) for reply, truth in zip(padded, episode.truth, strict=False)]
        rewards = [checked(found, episode, where)["reward"] for found in grades]
        return scores | {"task_reward": scores["reward"], "reward": sum(rewards) / len(rewards) if rewards else 0.0}

    def score_all(played: Sequence[Played]) -> list[dict[str, float]]:
        return [regrade(one, scores) for one, scores in zip(played, task.scores(played), strict=True)]

    changed = replace(task, score=lambda episode, replies: score_all([(episode, replies)])[0], score_all=score_all)
    probe(changed)
    return changed


def refuse_signature(function: object, source: str, arguments: int, names: str, key: str = KEY) -> None:
    """Raise UserError unless `function` can be called with so many arguments. names: of these, for the message."""
    import inspect

    code = parse(source, key)
    require(callable(function), f"{key}={code.shown} is {_kind(function)}, not a function: def {code.name}({names})")
    try:
        inspect.signature(function).bind(*range(arguments))  # type: ignore[arg-type]
    except TypeError as error:
        raise UserError(f"{key}={code.shown} does not take {names} ({error}): def {code.name}({names})") from error
    except ValueError:  # a builtin without a signature
        pass


def _kind(found: object) -> str:
    return f"a value of type {type(found).__name__}"


def _episodes(part: Sequence[Episode], name: str, shown: str) -> list[Episode]:
    """The episodes of a part, with their texts in tuples. Raises UserError naming the first that is none."""
    require(not isinstance(part, str | dict), f"{KEY}={shown}: {name} must be a list of Episodes, not {_kind(part)}")
    kept = []
    for index, episode in enumerate(part):
        where = f"{KEY}={shown}: {name}[{index}]"
        require(isinstance(episode, Episode), f"{where} is {_kind(episode)}, not an Episode(uid, turns, truth)")
        require(isinstance(episode.uid, str) and bool(episode.uid), f"{where}: uid must be a text that names the episode")
        for field, texts in (("turns", episode.turns), ("truth", episode.truth)):
            good = isinstance(texts, tuple | list) and all(isinstance(text, str) for text in texts)
            require(good, f"{where}: {field} must be a tuple of texts, for instance ({field[:5]!r},), not {_kind(texts)}")
        require(bool(episode.turns) and all(episode.turns), f"{where}: turns must hold a text that is not empty for every turn")
        require(isinstance(episode.system, str), f"{where}: system must be a text")
        kept.append(replace(episode, turns=tuple(episode.turns), truth=tuple(episode.truth)))
    return kept


def _score(task: Task, source: str, shown: str) -> Score:
    def score(episode: Episode, replies: Sequence[str]) -> dict[str, float]:
        with guarded(source, KEY, f"cannot score {episode.uid}"):
            found = task.score(episode, replies)
        return checked(found, episode, f"{KEY}={shown}")

    return score


def _score_all(task: Task, source: str, shown: str) -> ScoreAll:
    def score_all(played: Sequence[Played]) -> list[dict[str, float]]:
        with guarded(source, KEY, "cannot score"):
            found = task.scores(played)
        require(
            len(found) == len(played), f"{KEY}={shown}: score_all gives {len(found)} scores for {len(played)} episodes; give one for each"
        )
        return [checked(one, episode, f"{KEY}={shown}") for one, (episode, _) in zip(found, played, strict=True)]

    return score_all


def _respond(respond: Respond, source: str, shown: str) -> Respond:
    def checked_respond(episode: Episode, replies: Sequence[str]) -> str | None:
        with guarded(source, KEY, f"cannot respond in {episode.uid}"):
            text = respond(episode, replies)
        good = text is None or (isinstance(text, str) and text != "")
        require(good, f"{KEY}={shown}: respond gives {text!r} in {episode.uid}; give the user's next turn, or None at the end")
        return text

    return checked_respond
