"""The `hf` engine: generation with the trainer's own transformers model, batched, with a key-value cache."""

import copy
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch.nn.functional import pad as pad_left
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel

from mth.config import RolloutConfig
from mth.policy import Policy, model_parameters
from mth.rollout.engine import Completion, Request, check_fits
from mth.rollout.kv import GROUPED, drop, fork, grouped_heads, growing_cache, is_plain, join
from mth.seeds import uniforms
from mth.tickets.ticket import Ticket

SHRINK = 0.9  # finished sequences leave the batch once fewer than this share of its rows are still running
LOOK = 8  # tokens between two looks at what has finished where looking means waiting for the device
READ_CPU, READ = 2048, 32768  # prompt tokens read at a time
WORTH = 0.85  # prompts are read in two pieces when that leaves at most this share of the tokens


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
        swap = self.shared and not torch.equal(self.values, self.ticket.values.data)
        if swap:
            self.ticket.write(self.values)
        try:
            batches = range(0, len(order), self.batch_size)
            for start in tqdm(batches, desc="generate", unit="batch", leave=False, disable=len(batches) < 2):
                chosen = order[start : start + self.batch_size]
                with grouped_heads(self.model):
                    batch = decode(self.model, [requests[i] for i in chosen], max_tokens, temperature, self.policy)
                for index, completion in zip(chosen, batch, strict=True):
                    results[index] = completion
        finally:
            if swap:
                self.ticket.write()
        return [completion for completion in results if completion is not None]


def decode(model: PreTrainedModel, requests: Sequence[Request], max_tokens: int, temperature: float, policy: Policy) -> list[Completion]:
    """Generate for one batch. Rows that reached a stop token go on, unread, until the batch is next made smaller."""
    device = model.device
    prompts = sorted({tuple(request.prompt) for request in requests}, key=lambda prompt: (len(prompt), prompt))
    cache, hidden, real = read(model, prompts)
    place = {prompt: row for row, prompt in enumerate(prompts)}
    repeat = torch.tensor([place[tuple(request.prompt)] for request in requests], device=device)
    hidden, real = hidden[repeat], real[repeat]
    cache.batch_select_indices(repeat)

    length = real.sum(1)  # of each row's prompt, which the next token's position follows from
    width = real.shape[1]
    padded = not real.all()
    mask = torch.cat([real, real.new_ones(len(requests), max_tokens)], 1)
    if is_plain(cache) and model._supports_attention_backend and model.config._attn_implementation in ("sdpa", GROUPED):
        mask = mask[:, None, None].bool()  # as the layers take it, so that the model need not make one for every token
    noise = torch.from_numpy(np.stack([uniforms(request.seed, max_tokens) for request in requests])).to(device)
    stops = torch.tensor(sorted(policy.stop_ids), device=device)
    rows = torch.arange(len(requests), device=device)  # the request behind each row of the batch
    done = torch.zeros_like(rows, dtype=torch.bool)
    tokens = torch.zeros(max_tokens, len(requests), dtype=torch.long, device=device)
    logprobs = torch.zeros(max_tokens, len(requests), device=device)
    for position in range(max_tokens):
        token, logprob = sample(model.get_output_embeddings()(hidden), noise[:, position], temperature)
        tokens[position, rows], logprobs[position, rows] = token, logprob
        done |= torch.isin(token, stops)
        if position + 1 == max_tokens:
            break
        if device.type == "cpu" or position % LOOK == LOOK - 1:
            keep = (~done).nonzero().squeeze(1)
            if keep.numel() == 0:
                break
            if keep.numel() < SHRINK * rows.numel():
                order = drop(cache, done, keep)
                token, rows, done, length, mask, noise = (t[order] for t in (token, rows, done, length, mask, noise))
        seen = mask[..., : width + position + 1] if padded else None
        hidden = forward(model, token.unsqueeze(1), seen, (length + position).unsqueeze(1), cache)
    return completions(tokens.T, logprobs.T, stops)


def completions(tokens: torch.Tensor, logprobs: torch.Tensor, stops: torch.Tensor) -> list[Completion]:
    """Cut tokens [B, T] and their log-probabilities behind each row's first stop token."""
    ends = torch.isin(tokens, stops)
    stopped = ends.any(1)
    counts = torch.where(stopped, ends.int().argmax(1) + 1, tokens.shape[1])
    return [
        Completion(t[:n], p[:n], s)
        for t, p, n, s in zip(tokens.tolist(), logprobs.tolist(), counts.tolist(), stopped.tolist(), strict=True)
    ]


def read(model: PreTrainedModel, prompts: Sequence[tuple[int, ...]]) -> tuple[DynamicCache, torch.Tensor, torch.Tensor]:
    """Read distinct prompts, sorted by length; their cache, last hidden states [P, H] and the mask [P, T] of real tokens.

    What many begin with is read once. The rest is read some rows at a time, so that short prompts are not padded to the longest and
    intermediate results stay in the processor's cache. Prompts end together; padding is before them or behind what they share.
    """
    device, empty = model.device, growing_cache(model.config)
    common = shared_length(prompts) if is_plain(empty) else 0
    limit = (READ_CPU if device.type == "cpu" else READ) if is_plain(empty) else None
    heads = {prompt[:common]: None for prompt in prompts}
    row_of = {head: row for row, head in enumerate(heads)}
    if common:
        forward(model, torch.tensor(list(heads), device=device), None, torch.arange(common, device=device).expand(len(heads), -1), empty)
    caches, hiddens, masks = [], [], []
    for part in parts(prompts, common, limit):
        width = len(part[-1]) - common
        ids = torch.tensor([[0] * (width + common - len(p)) + list(p[common:]) for p in part], device=device)
        real = torch.tensor([[0] * (width + common - len(p)) + [1] * (len(p) - common) for p in part], device=device)
        mask = torch.cat([real.new_ones(len(part), common), real], 1)
        cache = fork(empty, torch.tensor([row_of[p[:common]] for p in part], device=device)) if common else growing_cache(model.config)
        positions = common + (real.cumsum(1) - 1).clamp(min=0)
        hiddens.append(forward(model, ids, mask if len(part[0]) < len(part[-1]) else None, positions, cache))
        caches.append(cache)
        masks.append(mask)
    width = len(prompts[-1])
    return join(caches), torch.cat(hiddens), torch.cat([pad_left(mask, (width - mask.shape[1], 0)) for mask in masks])


def shared_length(prompts: Sequence[tuple[int, ...]]) -> int:
    """How many first tokens to read once per distinct beginning so that the fewest tokens are read in all; 0 where that saves little."""
    ordered = sorted(prompts)
    alike = np.array([agreement(a, b) for a, b in pairwise(ordered)], dtype=int)
    lengths = np.arange(min(map(len, prompts)))
    distinct = 1 + np.searchsorted(np.sort(alike), lengths)
    tokens = distinct * lengths + sum(map(len, prompts)) - len(prompts) * lengths
    best = int(tokens.argmin())
    return best if tokens[best] < WORTH * tokens[0] else 0


def agreement(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))


def parts(prompts: Sequence[tuple[int, ...]], common: int, limit: int | None) -> Iterator[Sequence[tuple[int, ...]]]:
    """Prompts, sorted by length, in pieces of at most `limit` tokens behind the first `common`, at least one prompt each."""
    start = 0
    for end, prompt in enumerate(prompts):
        if limit is not None and end > start and (end + 1 - start) * (len(prompt) - common) > limit:
            yield prompts[start:end]
            start = end
    yield prompts[start:]


def forward(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor, cache: DynamicCache
) -> torch.Tensor:
    """Hidden states [B, H] of the last position; ids [B, T], mask of real tokens [B, past + T] or [B, 1, 1, past + T] or None, positions [B, T]."""
    output = model.base_model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    return output.last_hidden_state[:, -1]


def sample(logits: torch.Tensor, noise: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B] and their log-probabilities [B] from logits [B, V], by inverting the distribution function at `noise` [B] in [0, 1)."""
    logits = logits.float()
    logprobs = torch.log_softmax(logits if temperature in (0, 1) else logits / temperature, dim=-1)
    if temperature == 0:
        token = logprobs.argmax(-1)
    else:
        cumulative = logprobs.exp().cumsum(-1)
        point = (noise * cumulative[:, -1]).unsqueeze(1)
        token = torch.searchsorted(cumulative, point, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)
    return token, logprobs.gather(1, token.unsqueeze(1)).squeeze(1)
