"""Generates text: the engine protocol, the engines, and episodes played through them. Knows models, tickets and tasks; knows nothing of training.

To add an engine, write its file, add it to ENGINES, and add conf/rollout/<name>.yaml.
"""

from collections.abc import Callable

from mth.config.schema import RolloutConfig
from mth.foundations.errors import UserError
from mth.models.load import Policy
from mth.rollout.engine import RolloutEngine
from mth.tickets.ticket import Ticket


def _hf(policy: Policy, ticket: Ticket, config: RolloutConfig) -> RolloutEngine:
    """transformers, with the trainer's own model."""
    from mth.rollout.hf.engine import HfEngine

    return HfEngine(policy, ticket, config)


def _vllm(policy: Policy, ticket: Ticket, config: RolloutConfig) -> RolloutEngine:
    """vLLM in this process."""
    from mth.rollout.vllm.core import LocalCore
    from mth.rollout.vllm.engine import VllmEngine

    return VllmEngine(policy, ticket, config, LocalCore())


def _vllm_server(policy: Policy, ticket: Ticket, config: RolloutConfig) -> RolloutEngine:
    """vLLM behind `python -m mth.serve`."""
    from mth.rollout.vllm.engine import VllmEngine
    from mth.rollout.vllm.remote import RemoteCore

    return VllmEngine(policy, ticket, config, RemoteCore(config.url, config.timeout_s))


ENGINES: dict[str, Callable[[Policy, Ticket, RolloutConfig], RolloutEngine]] = {"hf": _hf, "vllm": _vllm, "vllm_server": _vllm_server}
"""Name of an engine -> function that builds it. Each function imports its engine, so that nobody needs all of them installed."""


def build_engine(policy: Policy, ticket: Ticket, config: RolloutConfig) -> RolloutEngine:
    """Build the engine that `rollout.engine` names. Raises UserError if there is none of that name."""
    if config.engine not in ENGINES:
        raise UserError(f"rollout.engine={config.engine} is unknown; choose one of {', '.join(ENGINES)}")
    return ENGINES[config.engine](policy, ticket, config)
