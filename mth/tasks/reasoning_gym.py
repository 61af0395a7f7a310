"""Any generator of the reasoning-gym library: `task=reasoning_gym task.dataset=chain_sum`. The library's own scorer gives the reward."""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

from mth.config.schema import TaskConfig
from mth.foundations.errors import UserError, first_line, require
from mth.foundations.seeds import derive_seed
from mth.tasks.base import EVAL_ROWS, Episode, Task
from mth.tasks.scores import checked, probe

SOURCE = None
HELD_SHARE = 4  # of the generated questions, at most one in so many is held out


def generator(config: TaskConfig, size: int) -> Any:
    """The library's data set with the options of the configuration. Raises UserError for an unknown one and for options that it refuses."""
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as error:
        raise UserError(
            f"task=reasoning_gym needs the package reasoning-gym ({first_line(error)}): pip install 'sparse-rlvr[reasoning-gym]'"
        ) from error
    import reasoning_gym  # noqa: F401 - registers the generators

    name = str(config.dataset)
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(DATASETS))}"
        raise UserError(f"task.dataset={name}: reasoning-gym has no generator of this name; {hint}")
    known = sorted({field.name for field in dataclasses.fields(DATASETS[name][1])} - {"seed", "size"})
    for option in config.options:
        require(option in known, f"task.options.{option} is unknown; the options of task.dataset={name} are: {', '.join(known)}")
    try:
        return create_dataset(name, seed=derive_seed("reasoning-gym", config.data_seed) % 2**31, size=size, **config.options)
    except Exception as error:  # generators check their options in many ways
        raise UserError(f"task.options of task.dataset={name}: reasoning-gym refuses them ({_said(error)}); correct them") from error


def build(config: TaskConfig) -> Task:
    """Generate `task.train_rows` questions for training, and for evaluation others that are not among them.

    Both parts are drawn with `task.data_seed`; those for evaluation do not depend on the number of the others. A generator with few
    different questions gives fewer. The first `task.shots` training questions become worked examples and are not trained.
    """
    held = max(1, min(EVAL_ROWS // 2, config.train_rows // HELD_SHARE or EVAL_ROWS // 2))
    count = held + config.train_rows
    source = generator(config, count)
    entries: dict[str, dict[str, Any]] = {}
    try:
        for index in range(count):
            entry = source[index]
            entries.setdefault(str(entry["question"]), entry)
    except Exception as error:
        raise UserError(f"task.dataset={config.dataset}: reasoning-gym cannot generate its questions ({_said(error)})") from error
    system = extraction_prompt() if config.system is None else config.system
    episodes = {
        f"{config.dataset}{index}": (Episode(f"{config.dataset}{index}", (question,), (str(entry.get("answer") or ""),), system), entry)
        for index, (question, entry) in enumerate(entries.items())
    }
    both = [episode for episode, _ in episodes.values()]
    parts = (both[held:], both[:held]) if config.holdout else (both, both)
    require(
        bool(parts[0]),
        f"task.dataset={config.dataset} has only {len(both)} different questions with these options; widen them or set task.holdout=false",
    )

    def score(episode: Episode, replies: Sequence[str]) -> dict[str, float]:
        reply = replies[0] if replies else ""
        try:
            found = source.score_answer(answer_in(reply), episodes[episode.uid][1])
        except Exception:  # scorers fail on answers that they cannot read
            found = 0.0
        scores = checked(found, episode, f"task.dataset={config.dataset}")
        return scores | {"exact": float(scores["reward"] == 1.0)}

    worked = [episode for episode in parts[0] if episode.truth[0]][: config.shots]
    train, held_out = ([episode for episode in part if episode not in worked] for part in parts)
    task = Task(config.name, train, held_out, score, worked=[(episode.turns[0], episode.truth[0]) for episode in worked])
    probe(task)
    return task


def answer_in(reply: str) -> str:
    """What stands in the last <answer> of a reply; of a reply without one, all of it."""
    from reasoning_gym.utils import extract_answer

    found = extract_answer(reply)
    return reply.strip() if found is None else str(found)


def extraction_prompt() -> str:
    """The library's system prompt that asks for the answer inside <answer>."""
    from reasoning_gym.utils import SYSTEM_PROMPTS

    return str(SYSTEM_PROMPTS["default"]).strip()


def _said(error: Exception) -> str:
    return first_line(error, 160) if str(error).strip() else type(error).__name__
