"""python -m mth.pretrain: make the embedded base model, or a larger one of the same kind, from nothing.

Usage
  python -m mth.pretrain [KEY=VALUE ...]        e.g. out=multirun/mine steps=200
"""

import sys
from typing import TYPE_CHECKING

from mth.config.cli import asks_for_help, hydra_main, one_line_errors
from mth.config.pretrain_schema import PretrainConfig

if TYPE_CHECKING:
    from omegaconf import DictConfig


def exact_share(model, tokenizer, batch) -> float:
    """Share of conversations in which every token is the model's first choice, given the true history: greedy pass@1 by teacher forcing."""
    import torch

    from mth.models.pretraining import encode_dialogues

    ids, labels = (tensor.to(model.device) for tensor in encode_dialogues(tokenizer, batch))
    with torch.no_grad():
        guess = model(input_ids=ids).logits[:, :-1].argmax(-1)
    wrong = (guess != labels[:, 1:]) & (labels[:, 1:] != -100)
    return (~wrong.any(1)).float().mean().item()


def pretrain(config: PretrainConfig) -> dict[str, float]:
    """Train and save model, tokenizer and a record of how they were made to `config.out`."""
    import random
    import time
    from pathlib import Path

    import torch

    from mth.config.stored import to_plain
    from mth.foundations.files import write_json
    from mth.foundations.progress import Bar
    from mth.models.device import resolve_device
    from mth.models.pretraining import (
        Slips,
        build_model,
        build_optimizers,
        dialogues,
        encode_dialogues,
        language_model_loss,
        learning_rate,
        names_per_turn,
        train_tokenizer,
    )
    from mth.models.save import save_model

    torch.manual_seed(config.seed)
    device = resolve_device(config.device)
    tokenizer = train_tokenizer(config.vocab_size, config.seed)
    model = build_model(tokenizer, config.hidden_size, config.layers, config.head_dim, config.intermediate_size)
    model.to(device)  # type: ignore[arg-type]
    optimizers = build_optimizers(model, config.lr)
    rng, held_out = random.Random(config.seed), random.Random(config.seed + 1)
    started, record = time.time(), {}
    out = Path(config.out)
    for step in Bar(range(config.steps), desc="pretrain", unit="steps"):
        clean = step < round(config.steps * config.clean_share)
        slips = Slips() if clean else Slips(config.slip_order, config.slip_equation)
        stream = dialogues(rng, slips, names_per_turn(step, config.steps, config.curriculum_share))
        batch = [next(stream) for _ in range(2 * config.batch_size)]
        loss = 0.0
        for part in (batch[::2], batch[1::2]):  # one task at a time: their lengths differ threefold
            with torch.autocast(device.type, torch.bfloat16, enabled=config.autocast):
                part_loss = language_model_loss(model, *(tensor.to(device) for tensor in encode_dialogues(tokenizer, part))) / 2
            part_loss.backward()
            loss += part_loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config.steps, config.lr)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if (step + 1) % config.check_every == 0 or step + 1 == config.steps:
            checks = dialogues(held_out, Slips())
            sample = [next(checks) for _ in range(256)]
            record = {
                "loss": loss,
                "exact_sort": exact_share(model, tokenizer, sample[::2]),
                "exact_arithmetic": exact_share(model, tokenizer, sample[1::2]),
            }
            Bar.write(
                f"step {step + 1}: " + " ".join(f"{key} {value:.3f}" for key, value in record.items()) + f" {time.time() - started:.0f} s"
            )
            if config.snapshots:
                save_model(model, tokenizer, out / f"step_{step + 1}")
    save_model(model, tokenizer, out)
    made = {
        "command": "python -m mth.pretrain",
        "config": {key: value for key, value in to_plain(config).items() if key not in ("out", "snapshots")},
        "torch": torch.__version__,
        "result": record,
        "seconds": round(time.time() - started),
    }
    write_json(out / "pretraining.json", made)
    return record


def main(cfg: "DictConfig") -> None:
    from mth.config.stored import load

    config = load(cfg)
    pretrain(config)
    print(f"saved to {config.out}; train it with: python -m mth.train model.path={config.out} model.lr_table=tiny")


@one_line_errors
def start(arguments: list[str]) -> None:
    if asks_for_help(arguments):
        from mth.config.help import command_help

        print(command_help(__doc__, [argument for argument in arguments if not argument.startswith("-")], PretrainConfig))
        return
    hydra_main(main, "pretrain")


if __name__ == "__main__":
    start(sys.argv[1:])
