"""Rollouts: the engine protocol, the engines, and conversations played with them."""

from mth.config import Engine, RolloutConfig
from mth.policy import Policy
from mth.rollout.engine import RolloutEngine
from mth.rollout.hf import HfEngine
from mth.tickets.ticket import Ticket


def build_engine(policy: Policy, ticket: Ticket, config: RolloutConfig) -> RolloutEngine:
    """The engine that `rollout.engine` names."""
    if config.engine is Engine.hf:
        return HfEngine(policy, ticket, config)
    from mth.rollout.core import LocalCore
    from mth.rollout.remote import RemoteCore
    from mth.rollout.vllm import VllmEngine

    core = LocalCore() if config.engine is Engine.vllm else RemoteCore(config.url, config.timeout_s)
    return VllmEngine(policy, ticket, config, core)
