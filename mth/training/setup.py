"""Assembles the parts of a run: tasks, model, ticket, engine. Training, evaluation and export all start here."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite

from mth.config.checks import check_context
from mth.config.schema import Config
from mth.foundations.errors import UserError, first_line, require
from mth.models.device import named_gpu_errors
from mth.models.load import Policy, load_policy, warn_of_slow_products
from mth.models.shapes import usable_context
from mth.rollout import build_engine
from mth.rollout.engine import Request, RolloutEngine
from mth.rollout.lengths import fitting
from mth.rollout.player import ChatRenderer, Player
from mth.runs.checkpoint import Checkpoint, restore_ticket
from mth.runs.contents import refuse_other_model
from mth.tasks import load_tasks
from mth.tasks.base import Task
from mth.tickets.draw import draw_ticket
from mth.tickets.ticket import Ticket

TRIAL_TOKENS = 3


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

    Raises UserError as `load_tasks`, `assemble_ticket`, `fitting` and `try_generation` do, and within as `named_gpu_errors` does.
    """
    task, eval_tasks = load_tasks(config)
    with named_gpu_errors():
        policy, ticket = assemble_ticket(config, checkpoint)
        if config.rollout.dtype is not config.model.dtype and policy.model.device.type == "cpu":
            warn_of_slow_products(config.rollout.dtype, "rollout.dtype")
        renderer = ChatRenderer(policy.tokenizer)
        task, eval_tasks = _fitting_tasks(config, task, eval_tasks, policy, renderer)
        engine = build_engine(policy, ticket, config.rollout)
        try:
            try_generation(config, engine, [task, *eval_tasks.values()], renderer, policy)
            yield Parts(config, policy, ticket, task, eval_tasks, Player(engine, renderer))
        finally:
            engine.close()


def try_generation(config: Config, engine: RolloutEngine, tasks: Sequence[Task], renderer: ChatRenderer, policy: Policy) -> None:
    """Render the first conversation of every task. With rollout.engine=hf, also generate a few tokens for two of them.

    Raises UserError, in one line, if a chat template cannot render one, or if the engine cannot generate with the model.
    """
    openings = []
    for task in {id(task): task for task in tasks}.values():
        for episode in (*task.train[:1], *task.eval[:1]):
            openings.append(renderer.opening(episode))
            more = episode.turns[1:] or (["next"] if task.turns_of(episode) > 1 else [])
            for text in more:
                renderer.between_turns(episode, text, -1)
    if config.rollout.engine != "hf" or not openings:
        return
    rows = [Request(ids, seed) for seed, ids in enumerate((openings * 2)[:2])]
    try:
        replies = engine.generate(rows, min(TRIAL_TOKENS, config.rollout.max_tokens), 1.0)
    except UserError:
        raise
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        name = type(policy.model).__name__
        raise UserError(
            f"rollout.engine=hf cannot generate with {name} ({type(error).__name__}: {first_line(error, 160)}); choose another model or engine"
        ) from error
    finite = all(isfinite(logprob) for reply in replies for logprob in reply.logprobs)
    require(finite, f"rollout.engine=hf: log-probabilities of {type(policy.model).__name__} are not finite; choose another model.dtype")


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
