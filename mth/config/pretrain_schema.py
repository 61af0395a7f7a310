"""Every key of `mth.pretrain`, the recipe of the embedded model."""

from dataclasses import dataclass

from mth.config.fields import check_ranges, key
from mth.foundations.errors import require


@dataclass
class PretrainConfig:
    """Tokenizer, shape and steps, and the slips that make the model inconsistent (see mth.models.pretraining)."""

    out: str = key("multirun/pretrained", "folder to write", place=True)
    steps: int = key(1400, "optimizer steps", least=1)
    batch_size: int = key(32, "conversations of each task per step", least=1)
    lr: float = key(2e-3, "peak learning rate", above=0)
    seed: int = key(0, "seed of data, tokenizer and weights", least=0)
    vocab_size: int = key(1280, "most entries of the tokenizer", least=300)
    hidden_size: int = key(192, "width of the model, a multiple of head_dim", least=1)
    layers: int = key(4, "decoder layers", least=1)
    head_dim: int = key(32, "size of an attention head", least=1)
    intermediate_size: int = key(512, "width of the feed-forward layers", least=1)
    curriculum_share: float = key(0.35, "part of the steps over which sorting grows to 5 names per turn", least=0, most=1)
    clean_share: float = key(0.75, "part of the steps with correct demonstrations", least=0, most=1)
    slip_order: float = key(0.2, "then: chance of an error per name", least=0, most=1)
    slip_equation: float = key(0.3, "then: chance of an error per equation", least=0, most=1)
    autocast: bool = key(True, "matrix products in bf16")
    device: str = key("auto", "auto (a GPU if there is one), cpu, cuda or cuda:N")
    check_every: int = key(100, "steps between checks on held-out conversations", least=1)
    snapshots: bool = key(False, "keep the model of every check", place=True)

    def __post_init__(self) -> None:
        check_ranges(self)
        require(self.hidden_size % self.head_dim == 0, f"hidden_size={self.hidden_size} must be a multiple of head_dim={self.head_dim}")
