"""Whether a model's rollouts can share rows, and how: found out by short trials."""

from itertools import accumulate
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from mth.foundations.errors import first_line
from mth.rollout.hf.kv import growing_cache, has_full_attention
from mth.training.lines import Line, reason_against_lines
from mth.training.logprobs import Layout, hidden_states
from mth.training.rows import ALONE, Packing, Row, fill_line, fill_rows

# Time of an attended pair under a mask, relative to a token's way through the decoder's weights, in units of hidden size x layers / weights.
# Then the share of it that a pair of a row without a mask takes, half of which is causal and left out.
# CPU: multiply and add in q k and in p v, at half the speed of a matrix product. GPU: 3.6 ms of a layer of 1.5B for 6 rows of 2,530 tokens,
# beside 16.5 microseconds a token for 28 layers: what is left of an update of 0.796 s without head, attention and the ticket (docs/gpu.md).
# Without a mask 0.95 ms for 24 rows of 730 tokens.
PAIR_COST = {"cpu": (4.0, 0.25), "cuda": (4.8, 0.8)}


def packing_of(model: PreTrainedModel) -> Packing:
    """How rollouts of this model share rows: in lines where the device has flash attention, else under a mask, or not at all.

    One line says why, if they do not share rows or a GPU needs a mask. Short trials find out.
    """
    if (reason := _reason_not_to_share(model)) is not None:
        name = type(model).__name__
        tqdm.write(f"warning: model.path: updates compute each prompt once per rollout, not once per row, which is slower: {name} {reason}")
        return ALONE
    if (reason := _reason_to_mask(model)) is None:
        return Packing(lines=True)
    if model.device.type == "cuda":
        tqdm.write(f"rows that share a prompt need a mask, which is slower: {reason}")
    return masked_packing(model, model.device.type)


def masked_packing(model: PreTrainedModel, device: str) -> Packing:
    """How rollouts share rows under a mask, on a kind of device."""
    weights = sum(p.numel() for name, p in model.base_model.named_parameters() if p.dim() > 1 and "embed" not in name)
    pair, causal = PAIR_COST.get(device, PAIR_COST["cuda"])
    return Packing(pair * model.config.hidden_size * model.config.num_hidden_layers / weights, causal)


def _reason_not_to_share(model: PreTrainedModel) -> str | None:
    """Why rollouts cannot share a row; None if they can, under a mask at least."""
    if (kind := model.config._attn_implementation) != "sdpa":
        return f"runs with {kind} attention; sdpa is needed"
    if not has_full_attention(growing_cache(model.config)):
        return "has layers without full attention, for instance a sliding window"
    try:
        check = _trial(model, lines=False)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        return f"takes no mask for pairs of tokens, or no positions ({first_line(error, 160)})"
    return _difference(model, *check)


def _reason_to_mask(model: PreTrainedModel) -> str | None:
    """Why rows of a model whose rollouts can share them cannot be laid in lines; None if they can."""
    try:
        if (reason := reason_against_lines(model)) is not None:
            return reason
        reason = _difference(model, *_trial(model, lines=True))
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError) as error:
        reason = f"takes no other attention ({first_line(error, 160)})"
    return None if reason is None else f"{type(model).__name__} {reason}"


def _difference(model: PreTrainedModel, right: float, wrong: dict[str, float]) -> str | None:
    """Says by how much a shared row differs, see `_trial`; None if that is rounding."""
    limit = 0.01 if model.dtype == torch.float32 else 0.25  # bfloat16 at realistic widths: about 0.05
    if right <= limit * min(wrong.values()):
        return None
    errors = ", ".join([f"{right:.1g}", *(f"without {name} {error:.1g}" for name, error in wrong.items())])
    return f"computes other hidden states for a shared row than for rows of their own (relative difference {errors})"


@torch.no_grad()
def _trial(model: PreTrainedModel, lines: bool) -> tuple[float, dict[str, float]]:
    """Difference between the hidden states of three sequences in one row and in separate rows, relative to the latter's norm.

    Besides, by what they lack, the differences of wrong layouts: without the mask, and with all positions 0. Where the model ignores
    a part of the layout, the first difference equals one of these, whatever the rounding error. Positions reach a model in lines
    as they do under a mask, so they are tried once.
    """
    device, prompt, lengths = model.device, 16, (8, 5, 7)
    count = prompt + sum(lengths)
    tokens = [(i + 1) * model.config.vocab_size // (count + 1) for i in range(count)]  # from the whole vocabulary: first ids are often odd
    ends = [prompt + end for end in accumulate(lengths)]
    ids = [tokens[:prompt] + tokens[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    masks, rows = [[True] * len(row) for row in ids], [Row((0, 1, 2), prompt, count)]
    if lines:
        packed, right = fill_line(ids, masks, rows, device)
        unmasked: Any = Line.of([], [], [packed.ids.shape[1]], device)
    else:
        packed = fill_rows(ids, masks, rows)
        right = packed.masked(device)
        unmasked = torch.ones(count, count, dtype=torch.bool, device=device).tril()[None, None]
    alone = torch.cat([hidden_states(model, torch.tensor([row], device=device), None)[0, prompt:] for row in ids]).float()

    def difference(positions: torch.Tensor, attention: Any) -> float:
        states = hidden_states(model, packed.ids.to(device), Layout(positions, right.previous, attention))
        return float((states[0, prompt:count].float() - alone).norm() / alone.norm())

    wrong = {"the mask": difference(right.positions, unmasked)}
    if not lines:
        wrong["positions"] = difference(torch.zeros_like(right.positions), right.attention)
    return difference(right.positions, right.attention), wrong
