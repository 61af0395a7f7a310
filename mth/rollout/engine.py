"""The protocol of rollout engines: token ids in, token ids and log-probabilities out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from mth.foundations.errors import UserError


@dataclass(frozen=True)
class Request:
    """One completion to generate.

    prompt: token ids. seed: seeds this completion's own random stream, so that batching does not change what is sampled.
    """

    prompt: Sequence[int]
    seed: int


@dataclass(frozen=True)
class Completion:
    """One generated completion.

    ids: sampled tokens, including the stop token. logprobs: one per token, in nats, under the distribution it was sampled from.
    stopped: True if a stop token ended it, False if it reached the token limit. entropies: of these distributions, in nats, one per token;
    empty if the engine was not asked for them or does not know them.
    """

    ids: list[int]
    logprobs: list[float]
    stopped: bool
    entropies: list[float] = field(default_factory=list)


Ended = Callable[[Sequence[tuple[int, Completion]]], None]  # takes places of requests and their completions


class RolloutEngine(Protocol):
    """What the trainer needs of an engine. Code outside `mth.rollout` uses these three methods only."""

    def generate(
        self,
        requests: Sequence[Request],
        max_tokens: int,
        temperature: float,
        stops: frozenset[int] = frozenset(),
        ended: Ended | None = None,
        entropies: bool = False,
    ) -> list[Completion]:
        """Return one completion per request, in order. stops: ids that end a completion beside the model's own.

        ended: an engine may call it while it generates, with completions that have ended since, or with none. It gives each at most once.
        entropies: whether completions should have their entropies.
        Temperature 0 decodes greedily and reports log-probabilities at temperature 1. Raises UserError if a prompt does not fit the context.
        """
        ...

    def sync(self, values: torch.Tensor) -> int:
        """Use these ticket values [K] at the active entries from now on. Returns the bytes sent."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...


def check_fits(requests: Sequence[Request], max_tokens: int, context: int) -> None:
    """Raise UserError if a prompt plus `max_tokens` exceeds `context` (tokens)."""
    longest = max((len(request.prompt) for request in requests), default=0)
    if longest + max_tokens > context:
        raise UserError(
            f"a prompt of {longest} tokens + max_tokens={max_tokens} exceeds the model's context of {context}; "
            "lower rollout.max_tokens, eval.max_tokens or task.shots"
        )
