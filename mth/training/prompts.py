"""Which prompts a step trains on."""

from mth.config.choices import PromptOrder
from mth.config.schema import Config
from mth.foundations.seeds import derive_seed, permutation
from mth.tasks.base import Episode, Task


def prompts(task: Task, config: Config, step: int) -> list[Episode]:
    """The episodes of a step (1, 2, ...), a function of `seed.train` and the step alone, so that nothing has to be saved for a resume."""
    count, size = config.prompts_per_step, len(task.train)
    if config.train.prompt_order is PromptOrder.draws:
        return [task.train[i] for i in permutation(derive_seed("prompts", config.seed.train, "draw", step), size)[:count]]
    chosen: list[Episode] = []
    position = (step - 1) * count
    while len(chosen) < count:
        epoch, offset = divmod(position + len(chosen), size)
        order = permutation(derive_seed("prompts", config.seed.train, epoch), size)
        chosen += [task.train[i] for i in order[offset : offset + count - len(chosen)]]
    return chosen
