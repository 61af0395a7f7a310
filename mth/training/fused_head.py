"""The LM head's log-probabilities as one compiled function, for a GPU: logits are read and written once instead of about ten times."""

import os
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from mth.foundations.errors import first_line
from mth.tickets.sampled_gradients import is_standard

LEAST_ROWS = 1024  # rows are compiled for: a power of two from here on, or what a chunk holds
SWITCHES = ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE")  # torch's own
VARIANTS = 64  # compiled forms that torch may keep: of a few sizes, with and without gradients; by default 8, beyond which it fails


def fixed_rows(tokens: int, most: int) -> int:
    """Rows of every chunk of `tokens` rows, of at most `most`: few sizes, because each is compiled for."""
    rows = LEAST_ROWS
    while rows < min(tokens, most):
        rows *= 2
    return min(rows, most)


def chosen_fused(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `logprobs.chosen_logprobs`, of a head with this weight [V, H] and bias [V]. Backward needs no scatter, so it repeats its bits."""
    logits = functional.linear(hidden, weight, bias).float() / temperature
    normalizer = torch.logsumexp(logits, 1)
    words = torch.arange(logits.shape[1], device=logits.device)
    chosen = torch.where(words == targets.unsqueeze(1), logits, 0.0).sum(1) - normalizer
    fixed, known = logits.detach(), normalizer.detach()
    entropy = known - ((fixed - known.unsqueeze(1)).exp() * fixed).sum(1)
    return chosen, entropy


def padded(
    function: Any, head: Any, temperature: float, rows: int, hidden: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Call `function` with `rows` rows, those behind `hidden` zero. Their results are cut off, and so is their gradient."""
    count = hidden.shape[0]
    more = rows - count
    if more:
        hidden, targets = functional.pad(hidden, (0, 0, 0, more)), functional.pad(targets, (0, more))
    chosen, entropy = function(hidden, head.weight, head.bias, targets, temperature)
    return chosen[:count], entropy[:count]


def compiled_head(head: Any, hidden: torch.Tensor, temperature: float, rows: int) -> Any:
    """The compiled function for this head and number of rows; None on a CPU, for a head of another kind, or where no compiler works."""
    plain = not is_standard(head) or not isinstance(head, nn.Linear) or "forward" in vars(head)
    if hidden.device.type != "cuda" or plain or any(os.environ.get(name) == "1" for name in SWITCHES):
        return None
    facts = (rows, hidden.dtype, temperature, hidden.requires_grad, head.weight.requires_grad, torch.is_grad_enabled())
    return _tried(head, facts)


_known: dict[Any, Any] = {}


def _tried(head: Any, facts: tuple[Any, ...]) -> Any:
    """The compiled function after a trial, forward and backward, in these circumstances; kept, also if it fails."""
    key = (tuple(head.weight.shape), head.bias is None, *facts)
    if key not in _known:
        rows, dtype, temperature, *wanted = facts
        try:
            _trial(head, rows, dtype, temperature, *wanted)
            _known[key] = _compiled()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # dynamo, inductor, triton and the C compiler raise many types
            tqdm.write(f"the head is not compiled, which is slower: {type(error).__name__}: {first_line(error, 160)}")
            _known[key] = None
    return _known[key]


def _trial(head: nn.Linear, rows: int, dtype: torch.dtype, temperature: float, hidden_grad: bool, weight_grad: bool, grad: bool) -> None:
    weight = nn.Parameter(head.weight.detach(), weight_grad)  # torch compiles anew for a tensor that is no parameter
    hidden = torch.zeros(rows, weight.shape[1], dtype=dtype, device=weight.device, requires_grad=hidden_grad)
    targets = torch.zeros(rows, dtype=torch.long, device=weight.device)
    bias = None if head.bias is None else nn.Parameter(head.bias.detach(), head.bias.requires_grad)
    chosen, _ = _compiled()(hidden, weight, bias, targets, temperature)
    if grad and chosen.requires_grad:
        chosen.sum().backward()


@cache
def _compiled() -> Any:
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, VARIANTS)
    return torch.compile(chosen_fused, dynamic=False, fullgraph=True)
