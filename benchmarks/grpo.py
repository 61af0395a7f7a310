"""Seconds of one whole GRPO step of the embedded model, rollouts and update: mth against TRL's GRPOTrainer, side by side.

python benchmarks/grpo.py [--prompts 16] [--group 8] [--new 32] [--rounds 7]

Both get the same model, prompts, group size and number of sampled tokens (no token ends a reply), temperature 1 and fp32.
"""

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from interleave import Memory, measure, reply, report, summarize, take_turns, wait_for_turn

from mth.config.schema import Config, LrConfig, ModelConfig, RolloutConfig, SparsityConfig, TaskConfig, TrainConfig

HERE = Path(__file__)


def config_of(prompts: int, group: int, new: int, percent: float) -> Config:
    return Config(
        task=TaskConfig(name="arithmetic"),
        sparsity=SparsityConfig(percent),
        train=TrainConfig(steps=10**6, batch_size=prompts * group, micro_batch_tokens=2048),
        rollout=RolloutConfig(group_size=group, max_tokens=new),
        lr=LrConfig(1e-5),
    )


def mth_step(prompts: int, group: int, new: int, percent: float) -> None:
    """What the loop does in a step: rollouts, rewards, advantages, micro-batches, update."""
    from mth.models.load import Policy, load_policy
    from mth.rollout import build_engine
    from mth.rollout.player import ChatRenderer, Player
    from mth.tasks import load_tasks
    from mth.tickets.draw import draw_ticket
    from mth.tickets.optimizer import build_optimizer
    from mth.tickets.route import choose_sampled
    from mth.training.advantages import group_advantages
    from mth.training.batches import collate
    from mth.training.prompts import prompts as episodes_of
    from mth.training.sharing import packing_of
    from mth.training.update import update

    config = config_of(prompts, group, new, percent)
    loaded = load_policy(config.model)
    policy = Policy(loaded.model, loaded.tokenizer, frozenset({-1}))
    memory = Memory()
    task, _ = load_tasks(config)
    ticket = draw_ticket(policy.model, config)
    ticket.sampled, _ = choose_sampled(policy.model, ticket, config.optimizer)
    optimizer = build_optimizer(ticket, config.optimizer, 1e-5)
    engine, packing = build_engine(policy, ticket, config.rollout), packing_of(policy.model)
    player = Player(engine, ChatRenderer(policy.tokenizer))
    count = 0

    def step() -> dict[str, float]:
        nonlocal count
        count += 1
        player.engine.sync(ticket.values.detach())
        start = time.perf_counter()
        episodes = episodes_of(task, config, count)
        rollouts = player.rollout_episodes(task, episodes, group_size=group, max_tokens=new, temperature=1.0, seed=("bench", count))
        middle = time.perf_counter()
        rewards = torch.tensor([rollout.reward for rollout in rollouts], dtype=torch.float64).view(-1, group)
        # random advantages: with no end of a reply all rewards are equal, and a gradient of zeros is cheaper than a real one
        advantages = torch.randn(rewards.shape) + group_advantages(rewards, config.algorithm.advantage)
        batches = collate(rollouts, advantages.flatten().tolist(), config.train.micro_batch_tokens, policy.model.device, packing)
        tokens = sum(rollout.completion_tokens for rollout in rollouts)
        update(policy, ticket, optimizer, batches, tokens, config)
        return {"tokens": tokens, "rollout": middle - start, "update": time.perf_counter() - middle}

    take_turns(step, memory)


def trl_step(prompts: int, group: int, new: int, lora: bool = False, keep: bool = False) -> None:
    """TRL's own loop, which waits for its turn at every step. keep: with freed memory kept, which mth does by itself."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from mth.models.memory import keep_freed_memory
    from mth.models.shapes import model_source
    from mth.models.tokenizer import load_tokenizer
    from mth.tasks import load_tasks

    config = config_of(prompts, group, new, 0)
    task, _ = load_tasks(config)
    if keep:
        keep_freed_memory()
    model = AutoModelForCausalLM.from_pretrained(model_source(ModelConfig()), dtype=torch.float32)
    tokenizer = load_tokenizer(ModelConfig())
    tokenizer.pad_token_id = tokenizer.eos_token_id
    rows = [{"prompt": [{"role": "user", "content": episode.turns[0]}]} for episode in task.train]
    generator = torch.Generator().manual_seed(0)

    class Turns(TrainerCallback):
        """Waits before every step, and reports after it."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not wait_for_turn():
                sys.exit()
            self.start = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            reply(seconds=time.perf_counter() - self.start, memory=memory.peak(), tokens=sampled[-1])

    sampled = [0]

    def reward(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        sampled.append(sum(map(len, completion_ids)))
        return torch.randn(len(completion_ids), generator=generator).tolist()

    memory = Memory()
    peft_config = None
    if lora:
        from peft import LoraConfig

        peft_config = LoraConfig(r=1, target_modules="all-linear")
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model,
            reward_funcs=reward,
            args=GRPOConfig(
                output_dir=folder,
                per_device_train_batch_size=prompts * group,
                num_generations=group,
                max_completion_length=new,
                generation_kwargs={"min_new_tokens": new, "max_new_tokens": new},
                temperature=1.0,
                beta=0.0,
                learning_rate=1e-5,
                max_steps=10**6,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                bf16=False,
                gradient_checkpointing=False,
                use_cpu=not torch.cuda.is_available(),
                disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Turns()],
            peft_config=peft_config,
        )
        reply(ready=1)
        trainer.train()


WORKERS = {
    "TRL GRPOTrainer, full": trl_step,
    "TRL GRPOTrainer, full, freed memory kept": partial(trl_step, keep=True),
    "TRL GRPOTrainer, LoRA rank 1": partial(trl_step, lora=True),
    "mth, full": partial(mth_step, percent=0.0),
    "mth, 99 %": partial(mth_step, percent=99.0),
    "mth, 99.9 %": partial(mth_step, percent=99.9),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--new", type=int, default=32, help="tokens of a reply")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = (arguments.prompts, arguments.group, arguments.new)
    if arguments.worker:
        WORKERS[arguments.worker](*sizes)
        return
    flags = [x for key, value in zip(("--prompts", "--group", "--new"), sizes, strict=True) for x in (key, str(value))]
    measured = measure({name: [str(HERE), "--worker", name, *flags] for name in WORKERS}, arguments.rounds)
    assert measured["tokens"].nunique() == 1, measured
    table = summarize(measured, "TRL GRPOTrainer, full").rename(columns={"times TRL GRPOTrainer, full": "times TRL"})
    phases = measured.groupby("program")[["rollout", "update"]].median().round(3)
    table["of it rollouts"], table["of it update"] = ([phases[key].get(name) for name in table["method"]] for key in ("rollout", "update"))
    text = (
        f"{sizes[0]} prompts x {sizes[1]} rollouts x {sizes[2]} sampled tokens, embedded model, arithmetic prompts, fp32; random rewards."
    )
    report("grpo", "One GRPO step of the embedded model", {"": table.fillna("")}, text)


if __name__ == "__main__":
    main()
