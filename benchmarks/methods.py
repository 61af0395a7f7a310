"""Methods of training a small share of a model, each a program for `interleave`: python methods.py <method> <model> <sparsity> <tokens>.

All methods run the same model, batch, loss and chunked log-probabilities, and take AdamW steps. They differ in what they train and in how
they compute its gradient.
"""

import sys
from collections.abc import Callable

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from mth.config.choices import WeightGradient
from mth.config.schema import OptimizerConfig
from mth.foundations.paths import ASSETS
from mth.models.memory import keep_freed_memory
from mth.tickets.draw import model_parameters
from mth.tickets.masks import sample_mask
from mth.tickets.optimizer import build_optimizer
from mth.tickets.route import choose_sampled
from mth.tickets.sampled_gradients import sampled_gradients
from mth.tickets.ticket import Ticket
from mth.training.logprobs import completion_backward

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LENGTH = 128  # tokens of a sequence
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if torch.cuda.is_available() else torch.float32

Step = Callable[[Callable[[], None]], None]  # takes one optimizer step, given a function that does forward and backward


def build_model(name: str) -> PreTrainedModel:
    """A Qwen2.5 model with random weights. `0.5b-8` is the 0.5B model with eight blocks and 32,000 tokens, 148 M parameters."""
    shape = AutoConfig.from_pretrained(ASSETS / f"qwen2.5-{name.removesuffix('-8')}")
    if name.endswith("-8"):
        shape.num_hidden_layers, shape.vocab_size = 8, 32000
        shape.layer_types = shape.layer_types[:8]
    torch.manual_seed(0)
    with DEVICE:
        return AutoModelForCausalLM.from_config(shape, dtype=DTYPE).eval()


def mask_of(model: nn.Module, percent: float) -> dict[str, torch.Tensor]:
    shapes = {name: tuple(p.shape) for name, p in model_parameters(model).items()}
    return sample_mask(shapes, "random", percent, 0)


def floor(model: PreTrainedModel, percent: float) -> Step:
    """Forward, and backward to the input of the first block. No weight gradient and no optimizer."""
    model.requires_grad_(False)
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.requires_grad_())

    return lambda work: work()


def ticket(how: WeightGradient) -> Callable[[PreTrainedModel, float], Step]:
    """mth: a ticket with sampled or dense weight gradients."""

    def build(model: PreTrainedModel, percent: float) -> Step:
        made = Ticket(model_parameters(model), mask_of(model, percent))
        made.sampled, _ = choose_sampled(model, made, OptimizerConfig(weight_gradient=how))
        optimizer = build_optimizer(made, OptimizerConfig(), 1e-4)

        def step(work: Callable[[], None]) -> None:
            made.zero_gradient()
            with sampled_gradients(model, made):
                work()
            optimizer.step()
            made.write()

        return step

    return build


def adapters(kind: str) -> Callable[[PreTrainedModel, float], Step]:
    """LoRA or SHiRA of peft on the linear layers, with as many parameters as the ticket. If these are few, rank one on some layers."""

    def build(model: PreTrainedModel, percent: float) -> Step:
        import peft

        wanted = sum(index.size for index in mask_of(model, percent).values())
        layers = {n: sum(m.weight.shape) for n, m in model.named_modules() if n.endswith(LINEAR)}
        rank = max(1, round(wanted / sum(layers.values())))
        chosen, count = [], 0
        for name, size in layers.items():
            if chosen and count + rank * size / 2 > wanted:
                break
            chosen.append(name)
            count += rank * size
        config = peft.LoraConfig if kind == "lora" else peft.ShiraConfig
        peft.get_peft_model(model, config(r=rank, target_modules=chosen))
        return plain([p for p in model.parameters() if p.requires_grad])

    return build


def plain(parameters: list[nn.Parameter]) -> Step:
    """Train these parameters with torch's fused AdamW."""
    print(f"{sum(p.numel() for p in parameters):,} trainable", file=sys.stderr)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01, fused=True)

    def step(work: Callable[[], None]) -> None:
        work()
        optimizer.step()
        optimizer.zero_grad()

    return step


def full(model: PreTrainedModel, percent: float) -> Step:
    """Full training."""
    return plain(list(model.parameters()))


def masked(model: PreTrainedModel, percent: float) -> Step:
    """Full gradients and AdamW state; a dense mask sets most of each gradient to zero."""
    masks = {}
    for name, index in mask_of(model, percent).items():
        parameter = model_parameters(model)[name]
        masks[parameter] = torch.zeros(parameter.numel(), dtype=torch.bool, device=DEVICE)
        masks[parameter][torch.from_numpy(index).to(DEVICE).long()] = True
    inner = plain(list(model.parameters()))

    def step(work: Callable[[], None]) -> None:
        def both() -> None:
            work()
            for parameter, mask in masks.items():
                parameter.grad.mul_(mask.view_as(parameter))

        inner(both)

    return step


def paper(model: PreTrainedModel, percent: float) -> Step:
    """The paper's implementation (appendix E): dense gradients, then AdamW on the active entries with int64 indices and fp32 state."""
    parameters = model_parameters(model)
    indices = {name: torch.from_numpy(index).to(DEVICE).long() for name, index in mask_of(model, percent).items()}
    moments = {name: torch.zeros(2, index.numel(), device=DEVICE) for name, index in indices.items()}
    count = 0

    @torch.no_grad()
    def adamw() -> None:
        nonlocal count
        count += 1
        for name, parameter in parameters.items():
            index, (first, second) = indices[name], moments[name]
            gradient = parameter.grad.view(-1)[index].float()
            first.mul_(0.9).add_(gradient, alpha=0.1)
            second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            flat = parameter.data.view(-1)
            value = flat[index].float() * (1 - 1e-4 * 0.01)
            scaled = first / (1 - 0.9**count) / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
            flat[index] = (value - 1e-4 * scaled).to(flat.dtype)
            parameter.grad = None

    def step(work: Callable[[], None]) -> None:
        work()
        adamw()

    return step


METHODS: dict[str, Callable[[PreTrainedModel, float], Step]] = {
    "floor": floor,
    "ticket": ticket(WeightGradient.auto),
    "ticket-sampled": ticket(WeightGradient.sampled),
    "ticket-dense": ticket(WeightGradient.dense),
    "lora": adapters("lora"),
    "shira": adapters("shira"),
    "paper": paper,
    "masked": masked,
    "full": full,
}


def main(method: str, name: str, percent: float, tokens: int) -> None:
    from interleave import Memory, take_turns

    if DEVICE.type == "cpu":
        keep_freed_memory()
    model = build_model(name)
    memory = Memory()
    ids = torch.randint(model.config.vocab_size, (tokens // LENGTH, LENGTH), device=DEVICE)
    loss_mask = torch.ones_like(ids, dtype=torch.bool)
    loss_mask[:, 0] = False
    step = METHODS[method](model, percent)

    def work() -> None:
        completion_backward(model, ids, loss_mask, 1.0, lambda logprobs, entropy, piece: -logprobs.sum() / loss_mask.sum())

    take_turns(lambda: step(work), memory)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
