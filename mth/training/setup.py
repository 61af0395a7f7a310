"""Assembles the parts of a run: tasks, model, ticket, engine. Training, evaluation and export all start here."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mth.config.checks import check_context
from mth.config.schema import Config
from mth.models.device import named_gpu_errors
from mth.models.load import Policy, load_policy
from mth.models.shapes import usable_context
from mth.rollout import build_engine
from mth.rollout.lengths import fitting
from mth.rollout.player import ChatRenderer, Player
from mth.runs.checkpoint import Checkpoint, restore_ticket
from mth.runs.contents import refuse_other_model
from mth.tasks import load_tasks
from mth.tasks.base import Task
from mth.tickets.draw import draw_ticket
from mth.tickets.ticket import Ticket


@dataclass(frozen=True)
class Parts:
    """What a configuration names: the model with its ticket, the tasks, and the player that generates with the ticket's values."""

    config: Config
    policy: Policy
    ticket: Ticket
    task: Task
    eval_tasks: dict[str, Task]
    player: Player


def assemble_ticket(config: Config, checkpoint: Checkpoint | None = None) -> tuple[Policy, Ticket]:
    """Model and ticket, with the values of a checkpoint if one is given. Raises UserError naming the key or file at fault."""
    policy = load_policy(config.model)
    check_context(config, usable_context(policy.model.config))
    ticket = draw_ticket(policy.model, config)
    if checkpoint is not None:
        refuse_other_model(checkpoint.path.parent.parent, config)
        restore_ticket(checkpoint, ticket)
    return policy, ticket


@contextmanager
def assemble(config: Config, checkpoint: Checkpoint | None = None) -> Iterator[Parts]:
    """All parts; the engine is closed at the end.

    Raises UserError as `load_tasks`, `assemble_ticket` and `fitting` do, and within as `named_gpu_errors` does.
    """
    task, eval_tasks = load_tasks(config)
    with named_gpu_errors():
        policy, ticket = assemble_ticket(config, checkpoint)
        renderer = ChatRenderer(policy.tokenizer)
        task, eval_tasks = _fitting_tasks(config, task, eval_tasks, policy, renderer)
        engine = build_engine(policy, ticket, config.rollout)
        try:
            yield Parts(config, policy, ticket, task, eval_tasks, Player(engine, renderer))
        finally:
            engine.close()


def _fitting_tasks(
    config: Config, task: Task, eval_tasks: dict[str, Task], policy: Policy, renderer: ChatRenderer
) -> tuple[Task, dict[str, Task]]:
    """The tasks without the episodes that `task.max_prompt_tokens` leaves out. The trained task may be evaluated too, with other limits."""
    limit, most = usable_context(policy.model.config), config.task.max_prompt_tokens
    if config.rollout.engine != "hf":
        limit = min(limit, config.rollout.context or limit)
    longest = {name: config.eval.of(name).max_tokens or 1 for name in eval_tasks}
    own = max([config.rollout.max_tokens, *(longest[name] for name, each in eval_tasks.items() if each is task)])
    fitted = fitting(task, renderer, limit, own, most)
    others = {n: fitted if t is task else fitting(t, renderer, limit, longest[n], most) for n, t in eval_tasks.items()}
    return fitted, others
