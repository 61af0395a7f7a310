"""The protocol between the program and whatever generates text: token ids in, token ids and log-probabilities out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from mth.errors import UserError


@dataclass(frozen=True)
class Request:
    """One reply to generate. prompt: token ids. seed: names the reply's own random stream, so that batching cannot change the draw."""

    prompt: Sequence[int]
    seed: int


@dataclass(frozen=True)
class Completion:
    """ids: sampled tokens, the stop token included. logprobs: of each under the distribution it was sampled from. stopped: not cut off."""

    ids: list[int]
    logprobs: list[float]
    stopped: bool


class RolloutEngine(Protocol):
    """Everything outside `mth.rollout` knows engines by these three methods only."""

    def generate(self, requests: Sequence[Request], max_tokens: int, temperature: float) -> list[Completion]:
        """One completion per request, in order. temperature 0 is greedy, its log-probabilities those at temperature 1."""
        ...

    def sync(self, values: torch.Tensor) -> int:
        """Generate from now on with these ticket values [K] at the active entries; returns the bytes that had to be sent."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...


def check_fits(requests: Sequence[Request], max_tokens: int, context: int) -> None:
    """Raise UserError, before anything is generated, when a prompt and its reply do not fit the context (tokens)."""
    longest = max((len(request.prompt) for request in requests), default=0)
    if longest + max_tokens > context:
        raise UserError(
            f"a prompt of {longest} tokens + max_tokens={max_tokens} exceeds the model's context of {context}; lower rollout.max_tokens or eval.max_tokens"
        )
