"""Writes a task's prompts: as chat or as raw text for base models, behind worked examples, with a text that ends a reply."""

from dataclasses import replace

from mth.config.choices import PromptFormat
from mth.config.schema import TaskConfig
from mth.foundations.errors import require
from mth.tasks.base import Episode, Task

BETWEEN = "\n\n"  # after a worked example in a raw prompt, if no text ends a reply


def prompted(task: Task, config: TaskConfig) -> Task:
    """The task with prompts as `task.prompt_format`, `task.shots` and `task.stop` say.

    All prompts begin with the same examples, so that an engine reads these once. Raises UserError if the task has too few worked
    examples, or has several turns, for which a raw prompt has no form.
    """
    raw, count = config.prompt_format is PromptFormat.raw, config.shots
    require(count <= len(task.worked), f"task.shots={count}: {task.name} has {len(task.worked)} worked examples")
    shots = tuple(task.worked[:count])
    episodes = (task.train, task.eval)
    if raw:
        several = any(task.turns_of(episode) > 1 for part in episodes for episode in part)
        require(not several, f"task.prompt_format=raw: {task.name} has several turns; use task.prompt_format=chat")
        end = config.stop or BETWEEN
        examples = "".join(f"{task.raw_form.format(question)} {reply}{end}" for question, reply in shots)

    def write(episode: Episode) -> Episode:
        if not raw:
            return replace(episode, shots=shots)
        before = f"{episode.system}{BETWEEN}" if episode.system else ""
        return replace(episode, turns=(before + examples + task.raw_form.format(episode.turns[0]),), system="", raw=True)

    train, held = ([write(episode) for episode in part] for part in episodes) if raw or shots else episodes
    return replace(task, train=train, eval=held, stop=config.stop)
