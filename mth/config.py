"""The only place of configuration types, defaults and validation. Imports no torch, so that --help and grid planning are quick.

Entry points call `load(cfg)` first; nobody below them sees a DictConfig. Validation happens in `Config.__post_init__`, before any model is loaded.
"""

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mth.errors import UserError

TASKS = ("alphabet_sort", "gsm8k", "math", "math500", "arithmetic")
TRAIN_TASKS = ("alphabet_sort", "gsm8k", "math", "arithmetic")
# Groups that take a number: `sparsity=99` becomes `sparsity.percent=99` before Hydra sees it.
NUMBER_GROUPS = {"sparsity": "sparsity.percent", "lr": "lr.value", "seed": "seed.train"}

# Paper, Table 1: what an experiment trains a model on when the command line names the model only.
TASK_OF = {"qwen2.5-1.5b": "math", "qwen2.5-0.5b": "gsm8k", "qwen2.5-0.5b-instruct": "alphabet_sort", "tiny": "arithmetic"}

# Paper, Table 2: sparsity in percent -> learning rate. `tiny` is the embedded model's own table, measured on its two tasks.
LR_TABLES: dict[str, dict[str, float]] = {
    "qwen2.5-0.5b": {"0": 1e-6, "99": 1e-4, "99.5": 1e-4, "99.9": 1e-3, "99.95": 1e-3, "99.99": 1e-3, "99.999": 5e-3},
    "qwen2.5-1.5b": {"0": 1e-6, "99": 1e-4, "99.5": 1e-4, "99.9": 1e-3, "99.95": 1e-3, "99.99": 4e-3, "99.999": 1e-2},
    "tiny": {"0": 1e-4, "99": 5e-3, "99.5": 1.5e-2, "99.9": 3e-2, "99.95": 9e-2, "99.99": 1e-1, "99.999": 1e-1},
}


class Init(Enum):
    """Where weights come from: a published or local checkpoint, or random numbers in the real shapes."""

    pretrained = "pretrained"
    random = "random"


class Dtype(Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class ClipNorm(Enum):
    """Which gradient's norm is clipped: that of the active entries, or the dense one before masking (as the published code did)."""

    masked = "masked"
    dense = "dense"


class WeightGradient(Enum):
    """How gradients of weights are made: only at the active entries, or whole, gathered and freed; auto takes the cheaper by layer."""

    auto = "auto"
    sampled = "sampled"
    dense = "dense"


class Advantage(Enum):
    """(R - mean) / std per group as the paper writes it, or R - mean as the published code ran."""

    standardized = "standardized"
    centered = "centered"


class Ratio(Enum):
    """PPO clipping of the importance ratio, or dropping tokens whose ratio leaves an interval."""

    clip = "clip"
    drop = "drop"


class PromptOrder(Enum):
    """Prompts in seeded epochs without repetition, or drawn anew every step."""

    epochs = "epochs"
    draws = "draws"


class Logprobs(Enum):
    """Old log-probabilities in the ratio: the rollout engine's, or recomputed by the trainer before the update."""

    engine = "engine"
    recompute = "recompute"


class Grader(Enum):
    strict = "strict"
    math_verify = "math_verify"


class Prompt(Enum):
    """System prompt of GSM8K and MATH: the paper's A.2, or that of the environment the published runs used."""

    paper = "paper"
    environment = "environment"


class Engine(Enum):
    """What generates: the trainer's own model, vLLM in the trainer's process, or vLLM in a process that `mth.serve` started."""

    hf = "hf"
    vllm = "vllm"
    vllm_server = "vllm_server"


class OptimizerName(Enum):
    adamw = "adamw"
    adam = "adam"
    sgd = "sgd"


class MaskFamily(Enum):
    """Which entries are trained: random ones, only those of the first or last decoder layer, or by size of the base model's weights."""

    random = "random"
    first_layer = "first_layer"
    last_layer = "last_layer"
    magnitude = "magnitude"


class Budget(Enum):
    """Of one layer: as many entries as the random mask of this sparsity has, or the whole layer whatever the sparsity (paper, appendix C)."""

    matched = "matched"
    whole_layer = "whole_layer"


class Magnitude(Enum):
    """The entries of largest or smallest absolute value."""

    largest = "largest"
    smallest = "smallest"


class Collect(Enum):
    """Gradients of a run: none kept, each step's whole on disk, or a random projection of each."""

    none = "none"
    exact = "exact"
    sketch = "sketch"


class Store(Enum):
    """Where metrics go beside the journal in the run folder."""

    mlflow = "mlflow"
    none = "none"


@dataclass
class ModelConfig:
    """path: hub id or local folder (null: the model of that name that the package ships). tokenizer: another folder or id to take it from.

    lr_table: whose learning rates `lr=table2` reads; a model given by path has none of its own.
    """

    name: str = "tiny"
    path: str | None = None
    tokenizer: str | None = None
    init: Init = Init.pretrained
    init_seed: int = 0
    dtype: Dtype = Dtype.float32
    device: str = "auto"
    activation_checkpointing: bool = False
    lr_table: str | None = None


@dataclass
class TaskConfig:
    """path: hub id, or local jsonl/parquet file or folder (null: the task's own default source)."""

    name: str = "alphabet_sort"
    path: str | None = None
    data_seed: int = 1337420
    holdout: bool = True
    train_rows: int = 8192
    min_turns: int = 2
    max_turns: int = 2
    min_names: int = 1
    max_names: int = 5
    grader: Grader = Grader.strict
    grader_timeout: float = 5.0
    prompt: Prompt = Prompt.paper


@dataclass
class SparsityConfig:
    """percent of each tensor's entries that stay frozen; 0 is full fine-tuning."""

    percent: float = 99.0


@dataclass
class SeedConfig:
    train: int = 42
    eval: int = 2001


@dataclass
class LrConfig:
    """value: constant learning rate (null: Table 2 of the paper, or the embedded model's own table, by model and sparsity).

    factor: multiplies it, so that a sweep means the same at every sparsity; a stored configuration has the product in `value`.
    """

    value: float | None = None
    factor: float = 1.0


@dataclass
class MaskConfig:
    """budget: of first_layer and last_layer only (null there: matched). magnitude: of that family only (null there: largest)."""

    family: MaskFamily = MaskFamily.random
    budget: Budget | None = None
    magnitude: Magnitude | None = None

    def __post_init__(self) -> None:
        layered, sized = self.family in (MaskFamily.first_layer, MaskFamily.last_layer), self.family is MaskFamily.magnitude
        require(layered or self.budget is None, "mask.budget belongs to mask=first_layer and mask=last_layer")
        require(sized or self.magnitude is None, "mask.magnitude belongs to mask=magnitude")
        self.budget = self.budget or Budget.matched if layered else None
        self.magnitude = self.magnitude or Magnitude.largest if sized else None


@dataclass
class AlgorithmConfig:
    """GRPO (paper 2.1). lag: how many optimizer steps the weights that generate are behind the trainer's."""

    advantage: Advantage = Advantage.standardized
    ratio: Ratio = Ratio.clip
    clip_eps: float = 0.2
    drop_low: float = 0.125
    drop_high: float = 8.0
    kl_coef: float = 0.0
    lag: int = 0


@dataclass
class OptimizerConfig:
    name: OptimizerName = OptimizerName.adamw
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.0
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    clip_norm: ClipNorm = ClipNorm.masked
    weight_gradient: WeightGradient = WeightGradient.auto


@dataclass
class RolloutConfig:
    """max_tokens: per reply. batch_size: sequences generated at a time. dtype: null generates in the model's own dtype.

    Of vLLM: context bounds prompt + reply (null: the model's), gpu_memory_utilization is its share of the GPU, kv_cache_mib the size of
    its key-value cache (null: by need), url and timeout_s (per call) where the server of `mth.serve` is.
    """

    engine: Engine = Engine.hf
    group_size: int = 16
    max_tokens: int = 96
    temperature: float = 1.0
    logprobs: Logprobs = Logprobs.engine
    dtype: Dtype | None = None
    batch_size: int = 256
    context: int | None = None
    gpu_memory_utilization: float = 0.4
    kv_cache_mib: int | None = None
    url: str = "http://127.0.0.1:8711"
    timeout_s: float = 1800.0


@dataclass
class EvalPaths:
    """Where an evaluation task reads its rows, all of which are then evaluation rows (null: its own source, or that of training)."""

    alphabet_sort: str | None = None
    gsm8k: str | None = None
    math: str | None = None
    math500: str | None = None
    arithmetic: str | None = None


@dataclass
class EvalConfig:
    """tasks: evaluated at step 0, every `every` steps (0: only first and last) and at the end; null: the training task."""

    every: int = 10
    tasks: list[str] | None = None
    paths: EvalPaths = field(default_factory=EvalPaths)
    samples: int = 256
    temperature: float = 1.0
    max_tokens: int | None = None


@dataclass
class CollapseConfig:
    """When a run counts as collapsed; the rule is stated in `mth.algorithm.collapse`. stop: end the run there."""

    window: int = 10
    reward_share: float = 0.5
    entropy_factor: float = 4.0
    min_entropy: float = 1e-4
    stop: bool = False


@dataclass
class CheckpointConfig:
    """every: steps between checkpoints (0: only at the end). keep: how many of the latest stay."""

    every: int = 10
    keep: int = 2


@dataclass
class SpectrumConfig:
    """Collection of one gradient per step before clipping (paper, appendix B). dtype: of exact ones on disk. width: numbers kept of each by a
    sketch, whose inner products are then off by about sqrt(2 / width) of the product of the norms at most. seed: of the projection.
    """

    mode: Collect = Collect.none
    dtype: Dtype = Dtype.float32
    width: int = 65536
    seed: int = 0


@dataclass
class TrainConfig:
    """batch_size: rollouts per step. micro_batch_tokens: padded tokens that one forward pass may hold."""

    steps: int = 100
    batch_size: int = 256
    micro_batch_tokens: int = 16384
    prompt_order: PromptOrder = PromptOrder.epochs


@dataclass
class TrackerConfig:
    """uri: an MLflow tracking server or store (null: sqlite file mlflow.db beside the runs)."""

    name: Store = Store.mlflow
    uri: str | None = None
    experiment: str = "mth"


@dataclass
class Config:
    """One run. `mask_seed` alone decides the mask, `seed.train` prompts and sampling, `seed.eval` the evaluations.

    force: begin at step 0 whatever other folders hold, that is run again what is finished and extend no shorter run.
    Of grids: detach returns when the grid is submitted.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    sparsity: SparsityConfig = field(default_factory=SparsityConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    mask_seed: int = 0
    seed: SeedConfig = field(default_factory=SeedConfig)
    lr: LrConfig = field(default_factory=LrConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    spectrum: SpectrumConfig = field(default_factory=SpectrumConfig)
    collapse: CollapseConfig = field(default_factory=CollapseConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    run_dir: str | None = None
    resume: bool = False
    checkpoint: str | None = None
    force: bool = False
    detach: bool = False

    def __post_init__(self) -> None:
        """Fill what follows from other keys, then validate. Raises UserError naming the key."""
        if self.model.path is None and self.model.name in LR_TABLES:
            self.model.lr_table = self.model.lr_table or self.model.name
        elif self.model.path is not None and self.model.name == "tiny":  # only the path was given
            self.model.name = Path(self.model.path).name
        if self.eval.tasks is None:
            self.eval.tasks = [self.task.name]
        if self.eval.max_tokens is None:
            self.eval.max_tokens = self.rollout.max_tokens
        validate(self)
        if self.lr.value is None and self.model.lr_table is not None:
            self.lr.value = table_lr(self.model.lr_table, self.sparsity.percent)
        if self.lr.value is not None and self.lr.factor != 1:
            self.lr = LrConfig(float(f"{self.lr.value * self.lr.factor:.6g}"))
        if self.sparsity.percent == 0:  # full fine-tuning is the same run whatever mask it might have had
            self.mask, self.mask_seed = MaskConfig(), 0

    @property
    def prompts_per_step(self) -> int:
        return self.train.batch_size // self.rollout.group_size

    @property
    def label(self) -> str:
        """A short readable name: model, task, sparsity, mask seed."""
        options = (self.mask.family, self.mask.budget, self.mask.magnitude)
        mask = "" if self.mask.family is MaskFamily.random else "-" + "-".join(option.name for option in options if option is not None)
        return f"{self.model.name}-{self.task.name}-s{self.sparsity.percent:.9g}{mask}-m{self.mask_seed}-lr{self.lr.value or 0:g}"


@dataclass
class PretrainConfig:
    """Recipe of the embedded model: tokenizer, shape, steps, and the slips that make the result inconsistent (see mth.pretraining).

    batch_size: conversations of each task per step. curriculum_share: part of the steps over which sorting grows to 5 names a turn.
    clean_share: part of the steps with correct demonstrations; after it, slip_order and slip_equation are the chances of an error.
    autocast: matrix products in bf16. snapshots: keep the model of every check.
    """

    out: str = "multirun/pretrained"
    steps: int = 1400
    batch_size: int = 32
    lr: float = 2e-3
    seed: int = 0
    vocab_size: int = 1280
    hidden_size: int = 192
    layers: int = 4
    head_dim: int = 32
    intermediate_size: int = 512
    curriculum_share: float = 0.35
    clean_share: float = 0.75
    slip_order: float = 0.2
    slip_equation: float = 0.3
    autocast: bool = True
    device: str = "auto"
    check_every: int = 100
    snapshots: bool = False

    def __post_init__(self) -> None:
        require(self.steps >= 1 and self.batch_size >= 1, "steps and batch_size must be at least 1")
        require(self.hidden_size % self.head_dim == 0, f"hidden_size={self.hidden_size} must be a multiple of head_dim={self.head_dim}")
        for key in ("curriculum_share", "clean_share", "slip_order", "slip_equation"):
            require(0 <= getattr(self, key) <= 1, f"{key}={getattr(self, key)} must lie in [0, 1]")


def require(condition: bool, message: str) -> None:
    """Raise UserError(message) unless `condition` holds."""
    if not condition:
        raise UserError(message)


def validate(config: Config) -> None:
    """Check values that types cannot: ranges, divisibility, known names. Raises UserError naming the key and the remedy."""
    c = config
    require(
        0 <= c.sparsity.percent < 100, f"sparsity.percent={c.sparsity.percent:.9g} must lie in [0, 100): at 100 nothing is left to train"
    )
    require(c.task.name in TRAIN_TASKS, f"task.name={c.task.name} is unknown; choose one of {', '.join(TRAIN_TASKS)}")
    for name in c.eval.tasks or []:
        require(name in TASKS, f"eval.tasks: {name} is unknown; choose from {', '.join(TASKS)}")
    size, group = c.train.batch_size, c.rollout.group_size
    require(group >= 2, f"rollout.group_size={group} must be at least 2: an advantage needs a group to compare with")
    require(size >= 1 and size % group == 0, f"train.batch_size={size} must be a multiple of rollout.group_size={group}")
    minima = {
        "train.steps": (c.train.steps, 1),
        "train.micro_batch_tokens": (c.train.micro_batch_tokens, 1),
        "rollout.max_tokens": (c.rollout.max_tokens, 1),
        "rollout.batch_size": (c.rollout.batch_size, 1),
        "rollout.context": (c.rollout.context or 2, 2),
        "rollout.kv_cache_mib": (c.rollout.kv_cache_mib or 1, 1),
        "eval.every": (c.eval.every, 0),
        "eval.samples": (c.eval.samples, 1),
        "eval.max_tokens": (c.eval.max_tokens or 0, 1),
        "checkpoints.every": (c.checkpoints.every, 0),
        "checkpoints.keep": (c.checkpoints.keep, 1),
        "collapse.window": (c.collapse.window, 1),
        "mask_seed": (c.mask_seed, 0),
        "seed.train": (c.seed.train, 0),
        "seed.eval": (c.seed.eval, 0),
        "task.train_rows": (c.task.train_rows, 1),
        "spectrum.width": (c.spectrum.width, 1),
        "spectrum.seed": (c.spectrum.seed, 0),
        "task.min_turns": (c.task.min_turns, 1),
        "task.min_names": (c.task.min_names, 1),
        "task.max_turns": (c.task.max_turns, c.task.min_turns),
        "task.max_names": (c.task.max_names, c.task.min_names),
    }
    for key, (value, least) in minima.items():
        require(value >= least, f"{key}={value} must be at least {least}")
    numbers = {
        "rollout.temperature": (c.rollout.temperature, True),
        "optimizer.max_grad_norm": (c.optimizer.max_grad_norm, True),
        "rollout.timeout_s": (c.rollout.timeout_s, True),
        "task.grader_timeout": (c.task.grader_timeout, True),
        "eval.temperature": (c.eval.temperature, False),
        "algorithm.kl_coef": (c.algorithm.kl_coef, False),
        "optimizer.weight_decay": (c.optimizer.weight_decay, False),
        "algorithm.clip_eps": (c.algorithm.clip_eps, True),
        "optimizer.eps": (c.optimizer.eps, True),
        "optimizer.momentum": (c.optimizer.momentum, False),
        "lr.factor": (c.lr.factor, True),
    }
    if c.lr.value is not None:
        numbers["lr.value"] = (c.lr.value, True)
    for key, (number, strict) in numbers.items():
        fine = math.isfinite(number) and (number > 0 if strict else number >= 0)
        require(fine, f"{key}={number:g} must be a {'positive' if strict else 'non-negative'} number")
    for key, beta in (("optimizer.beta1", c.optimizer.beta1), ("optimizer.beta2", c.optimizer.beta2)):
        require(0 <= beta < 1, f"{key}={beta} must lie in [0, 1)")
    require(
        not (c.optimizer.clip_norm is ClipNorm.dense and c.optimizer.weight_gradient is WeightGradient.sampled),
        "optimizer.clip_norm=dense needs whole gradients: leave optimizer.weight_gradient at auto",
    )
    share = c.rollout.gpu_memory_utilization
    require(0 < share < 1, f"rollout.gpu_memory_utilization={share:g} must lie in (0, 1): the trainer needs the rest")
    require(re.match(r"https?://\w", c.rollout.url) is not None, f"rollout.url={c.rollout.url} must be like http://127.0.0.1:8711")
    require(c.algorithm.lag in (0, 1), f"algorithm.lag={c.algorithm.lag} must be 0 (on-policy) or 1 (one step behind)")
    require(0 < c.algorithm.drop_low < 1 < c.algorithm.drop_high, "algorithm.drop_low and algorithm.drop_high must enclose 1")
    require(
        re.fullmatch(r"auto|cpu|cuda(:\d+)?", c.model.device) is not None,
        f"model.device={c.model.device} must be auto, cpu or cuda[:N]",
    )


def check_trainable(config: Config) -> None:
    """Raise UserError when the configuration can be evaluated but not trained: a model given by path has no learning rate of its own."""
    require(
        config.lr.value is not None,
        f"model.path={config.model.path} has no learning rates; give lr=... or model.lr_table= one of {', '.join(LR_TABLES)}",
    )


def check_context(config: Config, limit: int) -> None:
    """Raise UserError when a reply alone would fill the model's context of `limit` tokens; prompts are checked when they are generated from."""
    if config.rollout.engine is not Engine.hf:
        limit = min(limit, config.rollout.context or limit)
    for key, tokens in (("rollout.max_tokens", config.rollout.max_tokens), ("eval.max_tokens", config.eval.max_tokens or 0)):
        require(tokens < limit, f"{key}={tokens} leaves no room for a prompt in the model's context of {limit} tokens; lower it")


def table_lr(table: str | None, percent: float) -> float:
    """Learning rate of the model's table at this sparsity; between two levels, linear in log(rate) over log(density).

    Raises UserError when the model has no table.
    """
    if table not in LR_TABLES:
        raise UserError(f"model.lr_table={table} has no learning rates; give lr.value=... or one of model.lr_table={','.join(LR_TABLES)}")
    points = sorted((math.log(density(level)), math.log(rate)) for level, rate in LR_TABLES[table].items())
    x = max(math.log(density(percent)), points[0][0])
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            return float(f"{math.exp(y0 + (y1 - y0) * (x - x0) / (x1 - x0)):.6g}")
    raise AssertionError("density above 1")


def density(percent: float | str) -> Fraction:
    """Trained share of the parameters as an exact fraction: 99.9 is read as the decimal 99.9, not as its nearest double."""
    return 1 - Fraction(str(percent)) / 100


def rewrite_numbers(overrides: list[str]) -> list[str]:
    """`sparsity=99,99.9` -> `sparsity.percent=99,99.9`; likewise lr and seed. Words (`sparsity=dense`) stay group choices.

    An experiment with another model gets that model's task: `experiment=fig3_sparsity model=tiny` -> `... task=arithmetic`.
    """
    number = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"
    values = re.compile(rf"({number}|(range|interval|choice)\(.*\))(\s*,\s*{number})*")
    result = []
    for override in overrides:
        key, sign, value = override.partition("=")
        result.append(f"{NUMBER_GROUPS[key]}={value}" if sign and key in NUMBER_GROUPS and values.fullmatch(value) else override)
    given = dict(override.partition("=")[::2] for override in overrides)
    if "experiment" in given and "task" not in given and given.get("model") in TASK_OF:
        result.append(f"task={TASK_OF[given['model']]}")
    return result


def load(cfg: DictConfig | ListConfig) -> Any:
    """A validated Config (or PretrainConfig) from a composed one. Raises UserError with one line for anything wrong in it."""
    try:
        # `+new=1` gets past Hydra's check; merging into the bare schema refuses what it does not know.
        OmegaConf.merge(OmegaConf.structured(OmegaConf.get_type(cfg)), OmegaConf.to_container(cfg))
        return OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from error


def to_plain(config: Any) -> dict[str, Any]:
    """A config as plain JSON-able data, enums by name."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value.name if isinstance(value, Enum) else value

    return plain(asdict(config))


def flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    result: dict[str, Any] = {}
    for key, value in data.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result


def from_plain(data: Any) -> Config:
    """The inverse of `to_plain`: validates, and names a key that this version does not know."""
    try:
        config = OmegaConf.to_object(OmegaConf.merge(_schema(), data))
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"stored configuration does not fit this version of mth: {str(error).splitlines()[0]}") from error
    assert isinstance(config, Config)
    return config


@cache
def _schema() -> DictConfig:
    return OmegaConf.structured(Config)


def read_config(path: Path) -> Config:
    """The configuration that a run folder keeps in `config.yaml`."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: not a run folder of mth?")
    try:
        data = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({str(error).splitlines()[0]})") from error
    require(isinstance(data, dict), f"{path} is damaged (it holds no keys)")
    return from_plain(data)


# What does not influence the result of a run: where it is, who watches it, how often it is saved, where vLLM is and what memory it may take.
NOT_IDENTITY = (
    *("run_dir", "resume", "checkpoint", "force", "detach", "tracker", "checkpoints"),
    *("rollout.url", "rollout.timeout_s", "rollout.gpu_memory_utilization", "rollout.kv_cache_mib"),
)


def essence(config: Any, prefix: str = "") -> dict[str, Any]:
    """The sections and keys that influence the result, as plain data. config: a Config, or part of one as plain data."""
    data = config if isinstance(config, dict) else to_plain(config)
    kept = {key: value for key, value in data.items() if f"{prefix}{key}" not in NOT_IDENTITY}
    return {key: essence(value, f"{prefix}{key}.") if isinstance(value, dict) else value for key, value in kept.items()}


def identity(config: Config) -> str:
    """Hash of everything that influences the result: the same identity means the same run."""
    return hashlib.sha256(json.dumps(essence(config), sort_keys=True).encode()).hexdigest()[:16]


def trajectory(config: Config) -> str:
    """Identity but for `train.steps`, on which no step depends: of two runs with the same one the shorter is the beginning of the longer."""
    return identity(replace(config, train=replace(config.train, steps=1)))


def differing_keys(left: dict[str, Any], right: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys that matter to the result and whose values differ, as `key (left, here right)`."""
    found = []
    for key in sorted(left.keys() | right.keys()):
        a, b = left.get(key), right.get(key)
        if a == b or f"{prefix}{key}" in NOT_IDENTITY:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            found += differing_keys(a, b, f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key} ({a}, here {b})")
    return found
