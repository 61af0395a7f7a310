"""The `vllm` engines: generate with vLLM and write the ticket into the running model after every step."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch

from mth.config.schema import RolloutConfig
from mth.foundations.errors import EngineError
from mth.models.load import Policy
from mth.models.shapes import usable_context
from mth.rollout.engine import Completion, Ended, Request, check_fits
from mth.rollout.vllm.core import Core, EngineSpec, Reply
from mth.tickets.ticket import Ticket

MIN_CHUNK_BYTES = 2**28  # whole tensors are collected into chunks of at least this size, and each chunk is one transfer


class VllmEngine:
    """See RolloutEngine. Sends all weights to vLLM once, through vLLM's loader, and afterwards only the values of the ticket.

    The indices are sent once and checked before anything is written: the entries that they address in vLLM's fused parameters must hold the
    base model's values. Every update is counted per tensor. Raises EngineError naming the tensor if a count differs from the ticket's.
    """

    def __init__(self, policy: Policy, ticket: Ticket, config: RolloutConfig, core: Core) -> None:
        self.core, self.ticket = core, ticket
        self.stop_ids = sorted(policy.stop_ids)
        self.on_cpu = policy.model.device.type == "cpu"
        self.dtype = policy.model.dtype if config.dtype is None else getattr(torch, config.dtype.name)
        limit = usable_context(policy.model.config)
        self.context = min(limit, config.context or limit)
        dtype_name = str(self.dtype).removeprefix("torch.")
        core.open(
            EngineSpec(
                model_config=policy.model.config.to_dict() | {"dtype": dtype_name},
                dtype=dtype_name,
                context=self.context,
                max_sequences=config.batch_size,
                gpu_memory_utilization=config.gpu_memory_utilization,
                kv_cache_mib=config.kv_cache_mib,
            )
        )
        self.sparse_indices = {name: index for name, index in ticket.indices.items() if index is not None and index.numel()}
        self.whole_tensors = [name for name, index in ticket.indices.items() if index is None]
        self._load({name: parameter.detach() for name, parameter in ticket.parameters.items()})
        core.set_indices(self.sparse_indices)
        if self.sparse_indices:
            matching = core.count_matching(self._sparse_values(ticket.read()))
            self._check_counts(matching, self.sparse_indices, "hold the base model's values where the ticket's indices point")

    def sync(self, values: torch.Tensor) -> int:
        """Write the values [K] into vLLM. Returns the bytes sent. Tensors that are active as a whole go through vLLM's loader."""
        sent = 0
        if self.sparse_indices:
            sparse = self._sparse_values(values.detach())
            self._check_counts(self.core.write_values(sparse), self.sparse_indices, "were written")
            sent += sparse.numel() * sparse.element_size()
        if self.whole_tensors:
            shapes, slices = self.ticket.shapes, self.ticket.slices
            sent += self._load({name: values.detach()[slices[name]].view(shapes[name]) for name in self.whole_tensors})
        return sent

    def generate(
        self,
        requests: Sequence[Request],
        max_tokens: int,
        temperature: float,
        stops: frozenset[int] = frozenset(),
        ended: Ended | None = None,
        entropies: bool = False,
    ) -> list[Completion]:
        """See RolloutEngine. Every request has its own generator, so batching does not change what is sampled.

        `ended` is called where the trainer's model is on a GPU: on a CPU, what it begins would take the cores that generate.
        vLLM gives no entropies.
        """
        check_fits(requests, max_tokens, self.context)
        options = {"max_tokens": max_tokens, "temperature": temperature, "stop_token_ids": sorted({*self.stop_ids, *stops})}
        tell = {} if ended is None or self.on_cpu else {"told": partial(_tell, ended)}
        replies = self.core.generate([request.prompt for request in requests], options, [request.seed for request in requests], **tell)
        return [Completion(ids, logprobs, stopped) for ids, logprobs, stopped in replies]

    def close(self) -> None:
        """Free the engine."""
        self.core.close()

    def _sparse_values(self, values: torch.Tensor) -> torch.Tensor:
        """Select the values of sparsely active tensors from values [K], in the engine's dtype."""
        if self.whole_tensors:
            values = torch.cat([values[self.ticket.slices[name]] for name in self.sparse_indices])
        return values.to(self.dtype)

    def _load(self, tensors: Mapping[str, torch.Tensor]) -> int:
        """Load whole tensors and check that they arrived. Returns the bytes sent."""
        sent = 0
        for chunk in chunks(tensors, self.dtype):
            self._check_counts(self.core.load_tensors(chunk), chunk, "hold what was sent")
            sent += sum(tensor.numel() * tensor.element_size() for tensor in chunk.values())
        return sent

    def _check_counts(self, counts: Mapping[str, int], expected: Mapping[str, torch.Tensor], what: str) -> None:
        """Raise EngineError for the first tensor whose count is not its number of entries."""
        for name, tensor in expected.items():
            if counts.get(name, 0) != tensor.numel():
                raise EngineError(
                    f"vLLM is out of step with the trainer at {name}: {counts.get(name, 0):,} of {tensor.numel():,} entries {what}; "
                    "replies would come from other weights than those trained, so the run stops"
                )


def _tell(ended: Ended, replies: Sequence[tuple[int, Reply]]) -> None:
    ended([(place, Completion(*reply)) for place, reply in replies])


def chunks(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> Iterator[dict[str, torch.Tensor]]:
    """Convert tensors to `dtype` a few at a time, so that a large model is never in memory twice."""
    chunk: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        chunk[name] = tensor.to(dtype)
        size += chunk[name].numel() * chunk[name].element_size()
        if size >= MIN_CHUNK_BYTES:
            yield chunk
            chunk, size = {}, 0
    if chunk:
        yield chunk
