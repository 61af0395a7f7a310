"""The parts of pretraining the embedded base model: a small tokenizer, demonstrations of both embedded tasks, model, loss and optimizers.

The base model must be able to solve its tasks, but not reliably. Reinforcement learning can then improve it. Demonstrations are therefore
correct in the first part of training, and contain errors (a name out of order, a wrong sum) at a fixed rate in the rest.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from mth.models.chat import CHATML
from mth.tasks import alphabet_sort, arithmetic

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MAX_POSITIONS = 1024

# A capital starts a new word, so 'AdaLovelace' is always two. Digits are single, as in Qwen.
WORD_PATTERN = r" ?[A-Z]{2,}| ?[A-Z]?[a-z_]+|\d| ?[^\sA-Za-z\d]+ ?|\s+"


@dataclass(frozen=True)
class Slips:
    """Error rates of demonstrations. order: probability per name written. equation: probability per equation."""

    order: float = 0.0
    equation: float = 0.0


Dialogue = list[tuple[str, str]]  # (user, assistant) pairs


def noisy_order(lines: list[str], chance: float, rng: random.Random) -> list[str]:
    """Copy sorted lines in order, but take a random remaining line instead of the next one with probability `chance`."""
    rest, result = list(lines), []
    while rest:
        result.append(rest.pop(rng.randrange(len(rest)) if rng.random() < chance else 0))
    return result


def sort_dialogue(rng: random.Random, slips: Slips, max_names: int) -> Dialogue:
    """Draw a two-turn Alphabet Sort conversation with up to `max_names` new names per turn."""
    shape = alphabet_sort.Shape(max_names=max_names)
    draw = alphabet_sort.draw_episode(alphabet_sort.distinct_names(alphabet_sort.random_row(rng, 10)), shape, rng)
    assert draw is not None  # ten names suffice for two turns of five
    turns = alphabet_sort.user_turns(draw, shape, rng)
    replies = [alphabet_sort.reply_text(noisy_order(lines, slips.order, rng), t) for t, lines in enumerate(alphabet_sort.truths(draw))]
    return list(zip(turns, replies, strict=True))


def arithmetic_dialogue(rng: random.Random, slips: Slips) -> Dialogue:
    """Draw a word problem of the training split with a worked solution."""

    def slip(result: int) -> int:
        return max(0, result + rng.choice((-10, -2, -1, 1, 2, 10))) if rng.random() < slips.equation else result

    problem = arithmetic.draw_problem(rng)
    while arithmetic.is_eval(problem.question):
        problem = arithmetic.draw_problem(rng)
    return [(f"{problem.question}\n{arithmetic.INSTRUCTION}", arithmetic.solution_text(problem, slip))]


def dialogues(rng: random.Random, slips: Slips, max_names: int = 5) -> Iterator[Dialogue]:
    """Yield conversations without end, alternating between Alphabet Sort and arithmetic."""
    while True:
        yield sort_dialogue(rng, slips, max_names)
        yield arithmetic_dialogue(rng, slips)


def train_tokenizer(vocab_size: int, seed: int, samples: int = 20_000) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on demonstrations, with Qwen's special tokens and ChatML template.

    vocab_size: most entries. samples: number of conversations.
    """
    stream = dialogues(random.Random(seed), Slips())
    texts = (text for _ in range(samples) for pair in next(stream) for text in pair)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((*texts, "user\nassistant\nsystem\n"), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int, head_dim: int, intermediate: int) -> Qwen2ForCausalLM:
    """Build a Qwen2 model with random weights from torch's current seed. Has about a third as many key heads as query heads."""
    heads = hidden // head_dim
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=next(count for count in range(max(1, heads // 3), 0, -1) if heads % count == 0),
            max_position_embeddings=MAX_POSITIONS,
            tie_word_embeddings=True,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def encode_dialogues(tokenizer: PreTrainedTokenizerFast, batch: list[Dialogue]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids [B, T], padded on the right, and labels [B, T], which are -100 outside the assistant's replies."""
    texts = [
        text
        for dialogue in batch
        for user, reply in dialogue
        for text in (f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n", reply + "<|im_end|>")
    ]
    pieces = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    rows = []
    for dialogue in batch:
        ids, labels = [], []
        for _ in dialogue:
            prompt, reply = next(pieces), next(pieces)
            ids += prompt + reply + newline
            labels += [-100] * len(prompt) + reply + [-100] * len(newline)
        rows.append((ids, labels))
    width = max(len(ids) for ids, _ in rows)
    pad = tokenizer.pad_token_id
    padded = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows])
    return padded, torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows])


def language_model_loss(model: Qwen2ForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean next-token cross-entropy over labelled tokens, in nats. The LM head runs only there."""
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
    labelled = labels[:, 1:] != -100
    return F.cross_entropy(model.lm_head(hidden[labelled]), labels[:, 1:][labelled])


def build_optimizers(model: Qwen2ForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    """Build Muon for the matrices of the layers, and AdamW for embedding, norms and biases.

    Muon's update is scaled to AdamW's, so both use one learning rate. With Muon the model learns to copy names from the prompt in a third of
    the steps.
    """
    inner = {id(p) for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name}
    matrices = [p for p in model.parameters() if id(p) in inner]
    others = [p for p in model.parameters() if id(p) not in inner]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, weight_decay=0.01, betas=(0.9, 0.98), fused=True),
    ]


def names_per_turn(step: int, steps: int, share: float, most: int = 5) -> int:
    """Curriculum: most new names per turn. Grows from 1 to `most` over the first `share` of the steps."""
    return min(most, 1 + int(most * step / max(1.0, share * steps)))


def learning_rate(step: int, steps: int, peak: float, warmup: int = 60) -> float:
    """Learning rate at a step: linear warm-up over `warmup` steps, and linear decay from `peak` to a tenth of it."""
    return peak * min((step + 1) / warmup, 1.0 - 0.9 * step / steps)
