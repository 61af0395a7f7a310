"""The `hf` engine: generates with the trainer's transformers model, in batches, with a key-value cache."""

import copy
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel

from mth.config.schema import RolloutConfig
from mth.foundations.errors import first_line
from mth.foundations.progress import Bar, reply_bar
from mth.foundations.seeds import uniforms
from mth.models.load import Policy
from mth.models.shapes import usable_context
from mth.rollout.engine import Completion, Ended, Request, check_fits
from mth.rollout.hf.graph import captured
from mth.rollout.hf.kv import can_group_attention, growing_cache, has_full_attention, remove_finished_rows, use_grouped_attention
from mth.rollout.hf.prefill import prefill
from mth.rollout.hf.steps import MIN_CAPTURED_TOKENS, Capture, FixedSteps, GrowingSteps, Step
from mth.tickets.draw import model_parameters
from mth.tickets.ticket import Ticket

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
        self.captures = config.cuda_graphs and self.model.device.type == "cuda"
        if self.captures and not (can_group_attention(self.model) and has_full_attention(growing_cache(self.model.config))):
            self._give_up_capture("it needs sdpa and layers with full attention")

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
        self,
        requests: Sequence[Request],
        max_tokens: int,
        temperature: float,
        stops: frozenset[int] = frozenset(),
        ended: Ended | None = None,
        entropies: bool = False,
    ) -> list[Completion]:
        """See RolloutEngine. Batches prompts of similar length. Raises UserError if a prompt does not fit the context.

        `ended` is called on a GPU only: on a CPU, what it begins would take the cores that generate.
        """
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
                        batch = [requests[i] for i in chosen]
                        tell = None if ended is None or self.model.device.type == "cpu" else partial(_tell, ended, chosen)
                        capture = self._captured if self.captures else None
                        completions = generate_batch(self.model, batch, max_tokens, temperature, stop_ids, bar, capture, tell, entropies)
                    bar.update(start + len(chosen) - bar.n)
                    for index, completion in zip(chosen, completions, strict=True):
                        results[index] = completion
        finally:
            if swap:
                self.ticket.write()
        return [completion for completion in results if completion is not None]

    def _captured(self, step: Step) -> Step | None:
        """The step as a CUDA graph; None if that fails or has failed."""
        try:
            return captured(step) if self.captures else None
        except RuntimeError as error:
            self._give_up_capture(first_line(error, 160))
            return None

    def _give_up_capture(self, why: str) -> None:
        """Say once that steps are not captured. Later batches do not try."""
        self.captures = False
        name = type(self.model).__name__
        tqdm.write(
            f"warning: rollout.cuda_graphs: decoding is slower, because {name} cannot be captured ({why}); rollout.cuda_graphs=false hides this"
        )


def _tell(ended: Ended, chosen: Sequence[int], pairs: Sequence[tuple[int, Completion]]) -> None:
    """Call `ended` with places among all requests. chosen: those of the batch."""
    ended([(chosen[row], completion) for row, completion in pairs])


def generate_batch(
    model: PreTrainedModel,
    requests: Sequence[Request],
    max_tokens: int,
    temperature: float,
    stop_ids: frozenset[int],
    bar: Bar | None = None,
    capture: Capture | None = None,
    ended: Ended | None = None,
    entropies: bool = False,
) -> list[Completion]:
    """Generate one completion per request in one batch. bar: counts the replies that have ended. capture: see FixedSteps; None: GrowingSteps.

    ended: called with the completions of rows when they are removed, with none whenever rows are looked at, and with the others at the end.
    A row that reached a stop token may run on until finished rows are removed. What it samples after the stop token is cut off.
    """
    device, ended_before = model.device, bar.n if bar is not None else 0
    prompts = sorted({tuple(request.prompt) for request in requests}, key=lambda prompt: (len(prompt), prompt))
    cache, hidden, prompt_mask = prefill(model, prompts)
    prompt_row = {prompt: row for row, prompt in enumerate(prompts)}
    repeat = torch.tensor([prompt_row[tuple(request.prompt)] for request in requests], device=device)
    hidden, prompt_mask = hidden[repeat], prompt_mask[repeat]
    cache.batch_select_indices(repeat)

    steps = decoding_steps(model, cache, prompt_mask, max_tokens, capture)
    noise = torch.from_numpy(np.stack([uniforms(request.seed, max_tokens) for request in requests])).to(device)
    stops = torch.tensor(sorted(stop_ids), device=device)
    rows = torch.arange(len(requests), device=device)  # the request that each row of the batch belongs to
    finished = torch.zeros_like(rows, dtype=torch.bool)
    sampled: list[tuple[torch.Tensor, ...]] = []  # of each step, see `by_request`
    logits = model.get_output_embeddings()(hidden)
    for step in range(max_tokens):
        token, *numbers = sample(logits, noise[:, step], temperature, entropies)
        sampled.append((rows, token, *numbers))
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
            few = steps.few(running.numel(), rows.numel())
            if ended is not None:
                gone = rows[finished] if few else rows[:0]
                ended(completions_of(gone, sampled, len(requests), max_tokens, stops))
            if few:
                order = remove_finished_rows(cache, finished, running)
                token, rows, finished, noise = (tensor[order] for tensor in (token, rows, finished, noise))
                steps.keep(order)
        logits = steps(token)
    completions = cut_at_stop(by_request(sampled, len(requests), max_tokens), stops)
    if ended is not None:
        ended([(row, completions[row]) for row in rows.tolist()])
    return completions


def completions_of(
    rows: torch.Tensor, sampled: Sequence[tuple[torch.Tensor, ...]], count: int, max_tokens: int, stops: torch.Tensor
) -> list[tuple[int, Completion]]:
    """These of the `count` requests, and what was sampled for them. See `by_request`."""
    if rows.numel() == 0:
        return []
    columns = [column[rows] for column in by_request(sampled, count, max_tokens)]
    return list(zip(rows.tolist(), cut_at_stop(columns, stops), strict=True))


def decoding_steps(
    model: PreTrainedModel, cache: DynamicCache, prompt_mask: torch.Tensor, max_tokens: int, capture: Capture | None
) -> GrowingSteps | FixedSteps:
    """The steps that follow a prefill. prompt_mask [B, prompt]: 0 at padding. Those of fixed shape need sdpa and full attention."""
    mask = torch.cat([prompt_mask, prompt_mask.new_ones(len(prompt_mask), max_tokens)], 1)
    one_mask = has_full_attention(cache) and can_group_attention(model)
    if one_mask:
        mask = mask[:, None, None].bool()  # the form that attention layers take, which saves building it at every token
    lengths = prompt_mask.sum(1)
    if capture is not None and one_mask and max_tokens > MIN_CAPTURED_TOKENS:
        return FixedSteps(model, cache, lengths, mask, capture)
    return GrowingSteps(model, cache, lengths, None if prompt_mask.all() else mask, prompt_mask.shape[1])


def by_request(sampled: Sequence[tuple[torch.Tensor, ...]], count: int, max_tokens: int) -> list[torch.Tensor]:
    """Tokens, log-probabilities and, if they are there, entropies, each [count, max_tokens]; 0 where nothing was sampled.

    sampled: of each step the rows that sampled, and what they sampled.
    """
    rows, *columns = (torch.cat(parts) for parts in zip(*sampled, strict=True))
    steps = torch.arange(len(sampled)).repeat_interleave(torch.tensor([part[0].numel() for part in sampled])).to(rows.device)
    found = [column.new_zeros(count, max_tokens) for column in columns]
    for whole, column in zip(found, columns, strict=True):
        whole[rows, steps] = column
    return found


def cut_at_stop(columns: Sequence[torch.Tensor], stops: torch.Tensor) -> list[Completion]:
    """Cut tokens [B, T], their log-probabilities [B, T] and, if they are there, entropies [B, T] after each row's first stop token."""
    tokens = columns[0]
    is_stop = torch.isin(tokens, stops)
    stopped = is_stop.any(1)
    counts = torch.where(stopped, is_stop.int().argmax(1) + 1, tokens.shape[1])
    rows = zip(counts.tolist(), stopped.tolist(), *(column.tolist() for column in columns), strict=True)
    return [
        Completion(ids[:count], logprobs[:count], has_stopped, *(each[:count] for each in entropies))
        for count, has_stopped, ids, logprobs, *entropies in rows
    ]


def sample(logits: torch.Tensor, noise: torch.Tensor, temperature: float, entropies: bool = False) -> tuple[torch.Tensor, ...]:
    """Sample tokens [B] from logits [B, V] by inverse transform sampling. Temperature 0 is greedy.

    noise: [B], uniform in [0, 1). Returns the tokens and their log-probabilities [B] at this temperature, or at 1 if it is 0. entropies: also
    return the entropies [B] of the distributions, in nats.
    """
    logits = logits.float()
    logprobs = torch.log_softmax(logits if temperature in (0, 1) else logits / temperature, dim=-1)
    if temperature == 0:
        token = logprobs.argmax(-1)
    else:
        cumulative = logprobs.exp().cumsum(-1)
        point = (noise * cumulative[:, -1]).unsqueeze(1)
        token = torch.searchsorted(cumulative, point, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)
    found = (token, logprobs.gather(1, token.unsqueeze(1)).squeeze(1))
    return (*found, torch.special.entr(logprobs.exp()).sum(-1)) if entropies else found
