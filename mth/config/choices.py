"""The values that a key with a fixed set of values may have."""

from enum import Enum

LAYER_FAMILIES = ("first_layer", "middle_layer", "last_layer")  # mask families that have a budget
FIXED_FAMILIES = ("magnitude",)  # mask families that draw nothing: one mask, whatever the seed


class PromptFormat(Enum):
    """A conversation through the tokenizer's chat template, or plain text as a base model reads it."""

    chat = "chat"
    raw = "raw"


class Init(Enum):
    """Published or local weights, or random weights in the model's real shapes."""

    pretrained = "pretrained"
    random = "random"


class Dtype(Enum):
    """Number format of weights or gradients."""

    float32 = "float32"
    bfloat16 = "bfloat16"

    @property
    def bytes(self) -> int:
        """Bytes per number."""
        return {"float32": 4, "bfloat16": 2}[self.value]


class ClipNorm(Enum):
    """The gradient whose norm is clipped: at the active entries, or the whole one before masking (as the published code does)."""

    masked = "masked"
    dense = "dense"


class WeightGradient(Enum):
    """How weight gradients are computed: only at the active entries, or whole and then gathered; auto takes the cheaper per tensor."""

    auto = "auto"
    sampled = "sampled"
    dense = "dense"


class Advantage(Enum):
    """(R - mean) / std of the group as in the paper, or R - mean as in the published code."""

    standardized = "standardized"
    centered = "centered"


class Ratio(Enum):
    """What limits the importance ratio: PPO clipping, or dropping tokens whose ratio leaves an interval."""

    clip = "clip"
    drop = "drop"


class PromptOrder(Enum):
    """Seeded epochs without repetition, or a new draw every step."""

    epochs = "epochs"
    draws = "draws"


class Logprobs(Enum):
    """Old log-probabilities in the ratio: from the rollout engine, or recomputed by the trainer before the update."""

    engine = "engine"
    recompute = "recompute"


class Grader(Enum):
    """Equal text, mathematical equivalence by the math-verify library, or equal text as the published GSM8K runs' environment reads it."""

    strict = "strict"
    math_verify = "math_verify"
    environment = "environment"


class Prompt(Enum):
    """System prompt of GSM8K and MATH: from the paper's appendix A.2, or from the environment of the published runs."""

    paper = "paper"
    environment = "environment"


class OptimizerName(Enum):
    """An optimizer of torch.optim."""

    adamw = "adamw"
    adam = "adam"
    sgd = "sgd"


class Decay(Enum):
    """Share of a value that AdamW's weight decay takes at step t: lr x weight_decay, or that over 1 - beta1^t (as the published code does)."""

    plain = "plain"
    corrected = "corrected"


class Budget(Enum):
    """Entries of a one-layer mask: as many as the random mask has, or the whole layer (paper, appendix C)."""

    matched = "matched"
    whole_layer = "whole_layer"


def is_seeded(family: str, budget: Budget | str | None) -> bool:
    """Whether masks of a family with this budget, an option or its name, differ between seeds."""
    return family not in FIXED_FAMILIES and budget not in (Budget.whole_layer, Budget.whole_layer.name)


class Magnitude(Enum):
    """Entries of largest or of smallest absolute value."""

    largest = "largest"
    smallest = "smallest"


class Collect(Enum):
    """Gradients to keep: none, each step's whole on disk, or a random projection of each."""

    none = "none"
    exact = "exact"
    sketch = "sketch"


class TrackerName(Enum):
    """Where metrics go, beside the journal in the run folder."""

    mlflow = "mlflow"
    tensorboard = "tensorboard"
    wandb = "wandb"
    none = "none"
