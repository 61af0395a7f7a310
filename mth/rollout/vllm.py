"""The `vllm` engine: generation with vLLM, in this process or in another, the ticket written into the running model after every step."""

from collections.abc import Iterator, Mapping, Sequence

import torch

from mth.config import RolloutConfig
from mth.errors import EngineError
from mth.policy import Policy
from mth.rollout.core import Core, EngineSpec
from mth.rollout.engine import Completion, Request, check_fits
from mth.tickets.ticket import Ticket

CHUNK_BYTES = 2**28  # whole tensors handed over at a time


class VllmEngine:
    """See RolloutEngine. All weights go to vLLM once, through its own loader; after that only what the ticket can change.

    Indices are sent once and checked before anything is written through them: the entries that they name in vLLM's fused parameters must
    hold the base model's values. Every update is counted per tensor against the ticket. Raises EngineError naming the tensor otherwise.
    """

    def __init__(self, policy: Policy, ticket: Ticket, config: RolloutConfig, core: Core) -> None:
        self.core, self.ticket = core, ticket
        self.stop_ids = sorted(policy.stop_ids)
        self.dtype = policy.model.dtype if config.dtype is None else getattr(torch, config.dtype.name)
        limit = policy.model.config.max_position_embeddings
        self.context = min(limit, config.context or limit)
        core.open(
            EngineSpec(
                shape=policy.model.config.to_dict() | {"dtype": str(self.dtype).removeprefix("torch.")},
                dtype=str(self.dtype).removeprefix("torch."),
                context=self.context,
                sequences=config.batch_size,
                gpu_memory_utilization=config.gpu_memory_utilization,
                kv_cache_mib=config.kv_cache_mib,
            )
        )
        self.counts = {name: place.stop - place.start for name, place in ticket.slices.items()}
        self.sparse = {name: index for name, index in ticket.indices.items() if index is not None and index.numel()}
        self.dense = [name for name, index in ticket.indices.items() if index is None]
        weights = {name: parameter.detach() for name, parameter in ticket.parameters.items()}
        self._load(weights)
        core.place(self.sparse)
        if self.sparse:
            held = core.held(self._sparse_values(ticket.read()))
            self._compare(held, self.sparse, "hold the base model's values where the ticket's indices point")

    def sync(self, values: torch.Tensor) -> int:
        """Write the values [K] into vLLM; returns the bytes sent. Tensors that are active as a whole go through vLLM's loader."""
        sent = 0
        if self.sparse:
            piece = self._sparse_values(values.detach())
            self._compare(self.core.write(piece), self.sparse, "were written")
            sent += piece.numel() * piece.element_size()
        if self.dense:
            shapes, slices = self.ticket.shapes, self.ticket.slices
            sent += self._load({name: values.detach()[slices[name]].view(shapes[name]) for name in self.dense})
        return sent

    def generate(self, requests: Sequence[Request], max_tokens: int, temperature: float) -> list[Completion]:
        """See RolloutEngine. Every request samples from a generator of its own seed, so that batching cannot change the draw."""
        check_fits(requests, max_tokens, self.context)
        options = {"max_tokens": max_tokens, "temperature": temperature, "stop_token_ids": self.stop_ids}
        replies = self.core.generate([request.prompt for request in requests], options, [request.seed for request in requests])
        return [Completion(ids, logprobs, stopped) for ids, logprobs, stopped in replies]

    def close(self) -> None:
        """Free the engine."""
        self.core.close()

    def _sparse_values(self, values: torch.Tensor) -> torch.Tensor:
        if self.dense:
            values = torch.cat([values[self.ticket.slices[name]] for name in self.sparse])
        return values.to(self.dtype)

    def _load(self, tensors: Mapping[str, torch.Tensor]) -> int:
        """Whole tensors through vLLM's loader, counted; returns their bytes."""
        sent = 0
        for chunk in chunks(tensors, self.dtype):
            self._compare(self.core.load(chunk), chunk, "hold what was sent")
            sent += sum(tensor.numel() * tensor.element_size() for tensor in chunk.values())
        return sent

    def _compare(self, applied: Mapping[str, int], expected: Mapping[str, torch.Tensor], what: str) -> None:
        """Raise EngineError at the first tensor whose count is not the ticket's."""
        for name, tensor in expected.items():
            if applied.get(name, 0) != tensor.numel():
                raise EngineError(
                    f"vLLM is out of step with the trainer at {name}: {applied.get(name, 0):,} of {tensor.numel():,} entries {what}; "
                    "replies would come from other weights than those trained, so the run stops"
                )


def chunks(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors in `dtype`, some at a time, so that a large model is never held twice."""
    chunk: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        chunk[name] = tensor.to(dtype)
        size += chunk[name].numel() * chunk[name].element_size()
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = {}, 0
    if chunk:
        yield chunk
