"""The `hf` engine: generation with the trainer's own transformers model, batched, with a key-value cache."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel

from mth.config import RolloutConfig
from mth.policy import Policy, model_parameters
from mth.rollout.engine import Completion, Request, check_fits
from mth.seeds import uniforms
from mth.tickets.ticket import Ticket

SHRINK = 0.75  # finished sequences leave the batch once fewer than this share of its rows are still running


class HfEngine:
    """Generates with the policy's model, or with a copy of it in `rollout.dtype`.

    Sharing costs no memory: values that differ from the trainer's (rollouts one step behind) are swapped in for the call.
    """

    def __init__(self, policy: Policy, ticket: Ticket, config: RolloutConfig) -> None:
        self.policy, self.ticket, self.batch_size = policy, ticket, config.batch_size
        dtype = None if config.dtype is None else getattr(torch, config.dtype.name)
        self.shared = dtype is None or dtype == policy.model.dtype
        self.model = policy.model
        if not self.shared:
            self.model = copy.deepcopy(policy.model)
            for parameter in self.model.parameters():  # not the buffers: rotary frequencies stay fp32, as in a model loaded in bf16
                parameter.data = parameter.data.to(dtype)
        self.values = ticket.values.data

    def sync(self, values: torch.Tensor) -> int:
        """Use these ticket values [K]; a copy of the model gets them written at once. Nothing is sent anywhere."""
        self.values = values
        if not self.shared:
            self.ticket.write(values, into=model_parameters(self.model))
        return 0

    def close(self) -> None:
        """Nothing to free: the model belongs to the policy."""

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], max_tokens: int, temperature: float) -> list[Completion]:
        """See RolloutEngine. Requests of similar length share a batch. Raises UserError when a prompt does not fit the context."""
        check_fits(requests, max_tokens, self.model.config.max_position_embeddings)
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt))
        results: list[Completion | None] = [None] * len(requests)
        live = self.ticket.values.data
        swap = self.shared and self.values is not live and not torch.equal(self.values, live)
        if swap:
            self.ticket.write(self.values)
        try:
            batches = range(0, len(order), self.batch_size)
            for start in tqdm(batches, desc="generate", unit="batch", leave=False, disable=len(batches) < 2):
                chosen = order[start : start + self.batch_size]
                batch = decode(self.model, [requests[i] for i in chosen], max_tokens, temperature, self.policy)
                for index, completion in zip(chosen, batch, strict=True):
                    results[index] = completion
        finally:
            if swap:
                self.ticket.write()
        return [completion for completion in results if completion is not None]


def decode(model: PreTrainedModel, requests: Sequence[Request], max_tokens: int, temperature: float, policy: Policy) -> list[Completion]:
    """Generate for one batch. Equal prompts (a group's) are read once and their cache rows repeated."""
    device = model.device
    prompts: dict[tuple[int, ...], int] = {}
    row_of = [prompts.setdefault(tuple(request.prompt), len(prompts)) for request in requests]
    width = max(map(len, prompts))
    pad = next(iter(policy.stop_ids))
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    cache = DynamicCache(config=model.config)
    padded = width != min(map(len, prompts))
    hidden = forward(model, ids, real if padded else None, (real.cumsum(1) - 1).clamp(min=0), cache)

    repeat = torch.tensor(row_of, device=device)
    hidden = hidden[repeat]
    if len(prompts) < len(requests):
        cache.batch_select_indices(repeat)
    mask = torch.cat([real[repeat], torch.ones(len(requests), max_tokens, dtype=real.dtype, device=device)], 1) if padded else None
    lengths = real.sum(1)[repeat]
    noise = torch.from_numpy(np.stack([uniforms(request.seed, max_tokens) for request in requests])).to(device)
    stops = torch.tensor(sorted(policy.stop_ids), device=device)

    tokens = torch.zeros(len(requests), max_tokens, dtype=torch.long, device=device)
    logprobs = torch.zeros(len(requests), max_tokens, device=device)
    counts = torch.full((len(requests),), max_tokens, device=device)
    stopped = torch.zeros(len(requests), dtype=torch.bool, device=device)
    rows = torch.arange(len(requests), device=device)  # the request behind each row of the batch
    for position in range(max_tokens):
        token, logprob = sample(model.get_output_embeddings()(hidden), noise[rows, position], temperature)
        running = ~stopped[rows]
        tokens[rows[running], position] = token[running]
        logprobs[rows[running], position] = logprob[running]
        ended = running & torch.isin(token, stops)
        stopped[rows[ended]] = True
        counts[rows[ended]] = position + 1
        keep = (running & ~ended).nonzero().squeeze(1)
        if keep.numel() == 0 or position + 1 == max_tokens:
            break
        if keep.numel() < SHRINK * rows.numel():
            rows, token = rows[keep], token[keep]
            cache.batch_select_indices(keep)
        step_mask = None if mask is None else mask[rows, : width + position + 1]
        hidden = forward(model, token.unsqueeze(1), step_mask, (lengths[rows] + position).unsqueeze(1), cache)
    return [
        Completion(t[:n], p[:n], s)
        for t, p, n, s in zip(tokens.tolist(), logprobs.tolist(), counts.tolist(), stopped.tolist(), strict=True)
    ]


def forward(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor, cache: DynamicCache
) -> torch.Tensor:
    """Hidden states [B, H] of the last position; ids [B, T], mask [B, past + T] of real tokens or None, positions [B, T]."""
    output = model.base_model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    return output.last_hidden_state[:, -1]


def sample(logits: torch.Tensor, noise: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B] and their log-probabilities [B] from logits [B, V], by inverting the distribution function at `noise` [B] in [0, 1)."""
    logprobs = torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)
    if temperature == 0:
        token = logprobs.argmax(-1)
    else:
        cumulative = logprobs.exp().cumsum(-1)
        point = (noise * cumulative[:, -1]).unsqueeze(1)
        token = torch.searchsorted(cumulative, point, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)
    return token, logprobs.gather(1, token.unsqueeze(1)).squeeze(1)
