"""The `hf` engine: generates with the trainer's transformers model, in batches, with a key-value cache."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from mth.config.schema import RolloutConfig
from mth.foundations.progress import Bar, reply_bar
from mth.foundations.seeds import uniforms
from mth.models.load import Policy
from mth.models.shapes import usable_context
from mth.rollout.engine import Completion, Request, check_fits
from mth.rollout.hf.kv import GROUPED_ATTENTION, has_full_attention, remove_finished_rows, use_grouped_attention
from mth.rollout.hf.prefill import forward, prefill
from mth.tickets.draw import model_parameters
from mth.tickets.ticket import Ticket

MIN_RUNNING_SHARE = 0.9  # finished rows leave the batch once a smaller share of its rows is still running
TOKENS_BETWEEN_STOP_CHECKS = 8  # on a GPU, where each check waits for the device


class HfEngine:
    """Generates with the policy's model, or with a copy of it if `rollout.dtype` differs from the model's.

    The shared model costs no memory. If the values to generate from differ from the trainer's (`algorithm.lag`), they are swapped in for
    the duration of a call.
    """

    def __init__(self, policy: Policy, ticket: Ticket, config: RolloutConfig) -> None:
        self.policy, self.ticket, self.batch_size = policy, ticket, config.batch_size
        dtype = None if config.dtype is None else getattr(torch, config.dtype.name)
        self.shares_model = dtype is None or dtype == policy.model.dtype
        self.model = policy.model
        if not self.shares_model:
            self.model = copy.deepcopy(policy.model)
            for parameter in self.model.parameters():  # buffers keep fp32 (rotary frequencies), as in a model loaded in bf16
                parameter.data = parameter.data.to(dtype)
        self.values = ticket.values.data

    def sync(self, values: torch.Tensor) -> int:
        """Use these ticket values [K]. A copy of the model is updated at once. Returns 0: no bytes are sent."""
        self.values = values
        if not self.shares_model:
            self.ticket.write(values, into=model_parameters(self.model))
        return 0

    def close(self) -> None:
        """Do nothing: the model belongs to the policy."""

    @torch.no_grad()
    def generate(
        self, requests: Sequence[Request], max_tokens: int, temperature: float, stops: frozenset[int] = frozenset()
    ) -> list[Completion]:
        """See RolloutEngine. Batches prompts of similar length. Raises UserError if a prompt does not fit the context."""
        check_fits(requests, max_tokens, usable_context(self.model.config))
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt))
        results: list[Completion | None] = [None] * len(requests)
        stop_ids = self.policy.stop_ids | stops
        swap = self.shares_model and not torch.equal(self.values, self.ticket.values.data)
        if swap:
            self.ticket.write(self.values)
        try:
            with reply_bar(len(requests)) as bar:
                for start in range(0, len(order), self.batch_size):
                    chosen = order[start : start + self.batch_size]
                    with use_grouped_attention(self.model):
                        completions = generate_batch(self.model, [requests[i] for i in chosen], max_tokens, temperature, stop_ids, bar)
                    bar.update(start + len(chosen) - bar.n)
                    for index, completion in zip(chosen, completions, strict=True):
                        results[index] = completion
        finally:
            if swap:
                self.ticket.write()
        return [completion for completion in results if completion is not None]


def generate_batch(
    model: PreTrainedModel,
    requests: Sequence[Request],
    max_tokens: int,
    temperature: float,
    stop_ids: frozenset[int],
    bar: Bar | None = None,
) -> list[Completion]:
    """Generate one completion per request in one batch. bar: counts the replies that have ended.

    A row that reached a stop token may run on until finished rows are removed. What it samples after the stop token is cut off.
    """
    device, ended_before = model.device, bar.n if bar is not None else 0
    prompts = sorted({tuple(request.prompt) for request in requests}, key=lambda prompt: (len(prompt), prompt))
    cache, hidden, prompt_mask = prefill(model, prompts)
    prompt_row = {prompt: row for row, prompt in enumerate(prompts)}
    repeat = torch.tensor([prompt_row[tuple(request.prompt)] for request in requests], device=device)
    hidden, prompt_mask = hidden[repeat], prompt_mask[repeat]
    cache.batch_select_indices(repeat)

    prompt_lengths = prompt_mask.sum(1)
    width = prompt_mask.shape[1]
    padded = not prompt_mask.all()
    mask = torch.cat([prompt_mask, prompt_mask.new_ones(len(requests), max_tokens)], 1)
    sdpa = model._supports_attention_backend and model.config._attn_implementation in ("sdpa", GROUPED_ATTENTION)
    if has_full_attention(cache) and sdpa:
        mask = mask[:, None, None].bool()  # the form that attention layers take, which saves building it at every token
    noise = torch.from_numpy(np.stack([uniforms(request.seed, max_tokens) for request in requests])).to(device)
    stops = torch.tensor(sorted(stop_ids), device=device)
    rows = torch.arange(len(requests), device=device)  # the request that each row of the batch belongs to
    finished = torch.zeros_like(rows, dtype=torch.bool)
    tokens = torch.zeros(max_tokens, len(requests), dtype=torch.long, device=device)
    logprobs = torch.zeros(max_tokens, len(requests), device=device)
    for step in range(max_tokens):
        token, logprob = sample(model.get_output_embeddings()(hidden), noise[:, step], temperature)
        tokens[step, rows], logprobs[step, rows] = token, logprob
        finished |= torch.isin(token, stops)
        if step + 1 == max_tokens:
            break
        if device.type == "cpu" or (step + 1) % TOKENS_BETWEEN_STOP_CHECKS == 0:
            running = (~finished).nonzero().squeeze(1)
            if bar is not None:
                bar.set_postfix_str(f"token {step + 1} of {max_tokens}", refresh=False)
                bar.update(ended_before + len(requests) - running.numel() - bar.n)
            if running.numel() == 0:
                break
            if running.numel() < MIN_RUNNING_SHARE * rows.numel():
                order = remove_finished_rows(cache, finished, running)
                state = (token, rows, finished, prompt_lengths, mask, noise)
                token, rows, finished, prompt_lengths, mask, noise = (tensor[order] for tensor in state)
        attention_mask = mask[..., : width + step + 1] if padded else None
        hidden = forward(model, token.unsqueeze(1), attention_mask, (prompt_lengths + step).unsqueeze(1), cache)
    return cut_at_stop(tokens.T, logprobs.T, stops)


def cut_at_stop(tokens: torch.Tensor, logprobs: torch.Tensor, stops: torch.Tensor) -> list[Completion]:
    """Cut tokens [B, T] and their log-probabilities [B, T] after each row's first stop token."""
    is_stop = torch.isin(tokens, stops)
    stopped = is_stop.any(1)
    counts = torch.where(stopped, is_stop.int().argmax(1) + 1, tokens.shape[1])
    return [
        Completion(ids[:count], row_logprobs[:count], has_stopped)
        for ids, row_logprobs, count, has_stopped in zip(tokens.tolist(), logprobs.tolist(), counts.tolist(), stopped.tolist(), strict=True)
    ]


def sample(logits: torch.Tensor, noise: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample tokens [B] from logits [B, V] by inverse transform sampling. Temperature 0 is greedy.

    noise: [B], uniform in [0, 1). Returns the tokens and their log-probabilities [B] at this temperature, or at 1 if it is 0.
    """
    logits = logits.float()
    logprobs = torch.log_softmax(logits if temperature in (0, 1) else logits / temperature, dim=-1)
    if temperature == 0:
        token = logprobs.argmax(-1)
    else:
        cumulative = logprobs.exp().cumsum(-1)
        point = (noise * cumulative[:, -1]).unsqueeze(1)
        token = torch.searchsorted(cumulative, point, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)
    return token, logprobs.gather(1, token.unsqueeze(1)).squeeze(1)
