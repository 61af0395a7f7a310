"""Every key of a run: type, default, meaning, range, and whether it belongs to the run's identity. Rules across keys are in `checks`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mth.config.checks import check_rules
from mth.config.choices import (
    LAYER_FAMILIES,
    Advantage,
    Budget,
    ClipNorm,
    Collect,
    Decay,
    Dtype,
    Grader,
    Init,
    Logprobs,
    Magnitude,
    OptimizerName,
    Prompt,
    PromptFormat,
    PromptOrder,
    Ratio,
    TrackerName,
    WeightGradient,
    is_seeded,
)
from mth.config.eval_schema import OF_A_TASK, EvalConfig, EvalOverride
from mth.config.fields import check_ranges, key, reset_idle, section
from mth.config.learning_rates import RATES, table_lr
from mth.config.samples_schema import SamplesConfig
from mth.config.user_code import own_names, settle
from mth.foundations.paths import one_spelling


@dataclass
class ModelConfig:
    """The language model."""

    name: str = key("tiny", "name of the model; a model that mth ships needs no path")
    path: str | None = key(None, "hub id, local folder or GGUF file of the weights; null: the model of that name that mth ships")
    tokenizer: str | None = key(
        None, "hub id, folder or GGUF file of another tokenizer", matters=lambda c: c.model.tokenizer != c.model.path
    )
    init: Init = key(Init.pretrained, "pretrained weights, or random ones in the real shapes")
    init_seed: int = key(0, "seed of random weights", matters=lambda c: c.model.init is Init.random)
    dtype: Dtype = key(Dtype.float32, "number format of the weights")
    device: str = key("auto", "auto (a GPU if there is one), cpu, cuda or cuda:N")
    deterministic: bool = key(True, "on a GPU: same command, same bits; false: faster", place=True)
    activation_checkpointing: bool = key(False, "recompute activations in backward: less memory, more time")
    lr_table: str | None = key(None, "learning rates that lr=table2 reads; null: those of the model's name")


WITHOUT_TURNS = {"arithmetic", "gsm8k", "math", "math500", "multiplication", "names", "addition", "weekdays"}


def _has_turns(config: Any) -> bool:
    """Whether a task that is trained or evaluated may read the ranges of turns and names. A task that someone adds may."""
    return not {config.task.name, *(config.eval.tasks or ())} <= WITHOUT_TURNS


@dataclass
class TaskConfig:
    """The task that is trained."""

    name: str = key("alphabet_sort", "task to train", group="task")
    source: str | None = key(None, "a task of your own: path/to/file.py:build or package.module:build; null: one of mth", later=True)
    path: str | None = key(None, "hub id, or local jsonl or parquet file or folder; null: the task's own data")
    dataset: str | None = key(None, "reasoning_gym: name of the generator", later=True)
    environment: str | None = key(None, "verifiers: id of the environment", later=True)
    options: dict[str, Any] = key({}, "further options of a task of your own, of the generator or of the environment", later=True)
    system: str | None = key(None, "system prompt of reasoning_gym and verifiers; null: their own; empty: none", later=True)
    data_seed: int = key(1337420, "seed of generated rows and of the split")
    holdout: bool = key(True, "hold rows out for evaluation where the data have no test split")
    train_rows: int = key(8192, "training rows, for tasks that generate them; 0: the task is only for evaluation", least=0)
    min_turns: int = key(2, "alphabet_sort: fewest turns", least=1, matters=_has_turns)
    max_turns: int = key(2, "alphabet_sort: most turns", matters=_has_turns)
    min_names: int = key(1, "alphabet_sort: fewest new names per turn", least=1, matters=_has_turns)
    max_names: int = key(5, "alphabet_sort: most new names per turn", matters=_has_turns)
    grader: Grader = key(Grader.strict, "grades answers in a box; the task's file sets it: math_verify for math and math500, else strict")
    grader_source: str | None = key(None, "a grader of your own: path/to/file.py:grade; null: task.grader", later=True)
    grader_timeout: float = key(5.0, "limit of math_verify per answer, in seconds of CPU time", above=0)
    every_grader: bool = key(False, "report math_verify too where it is not the reward", later=True)
    prompt: Prompt = key(Prompt.paper, "system prompt of gsm8k and math")
    prompt_format: PromptFormat = key(PromptFormat.chat, "chat: with the chat template; raw: as plain text, for base models", later=True)
    max_prompt_tokens: int | None = key(None, "leave out episodes whose prompts have more tokens; null: none", later=True, least=1)
    shots: int = key(0, "worked examples before every prompt, the same ones for all", later=True, least=0)
    stop: str = key("", "text that ends a reply, beside the model's own end; empty: none", later=True)


@dataclass
class SparsityConfig:
    """How many entries stay frozen."""

    percent: float = key(
        99.0,
        "percent of each tensor's entries that stay frozen; 0: full fine-tuning",
        least=0,
        below=100,
        matters=lambda c: c.sparsity.percent == 0 or c.mask.budget is not Budget.whole_layer,
    )


@dataclass
class SeedConfig:
    """Seeds of everything but the mask."""

    train: int = key(42, "prompts and sampling in training", least=0)
    eval: int = key(2001, "evaluation prompts and sampling", least=0)


@dataclass
class LrConfig:
    """The learning rate, constant over a run. A stored configuration has the product in `value`."""

    value: float | None = key(None, "learning rate; null: Table 2 of the paper, or the embedded model's table", above=0)
    factor: float = key(1.0, "multiplies the learning rate, so that a sweep means the same at every sparsity", above=0)


@dataclass
class MaskConfig:
    """Which entries are trained."""

    family: str = key("random", "how entries are chosen", group="mask")
    budget: Budget | None = key(None, "first_layer, middle_layer, last_layer: entries as many as a random mask has, or the whole layer")
    magnitude: Magnitude | None = key(None, "magnitude: the entries of largest or smallest absolute value")
    options: dict[str, Any] = key({}, "further options of the family, named by its file", later=True)
    source: str | None = key(None, "a family of your own: path/to/file.py:FAMILY or package.module:FAMILY; null: one of mth", later=True)

    def __post_init__(self) -> None:
        self.budget = self.budget or (Budget.matched if self.family in LAYER_FAMILIES else None)
        self.magnitude = self.magnitude or (Magnitude.largest if self.family == "magnitude" else None)


def _may_drop(config: Any) -> bool:
    return config.algorithm.ratio is not Ratio.clip


@dataclass
class AlgorithmConfig:
    """GRPO (paper, section 2.1)."""

    advantage: Advantage = key(Advantage.standardized, "how rewards of a group become advantages")
    ratio: Ratio = key(Ratio.clip, "what limits the importance ratio")
    source: str | None = key(None, "a rule of your own instead of ratio: path/to/file.py:rule or package.module:rule", later=True)
    clip_eps: float = key(
        0.2, "clip: the ratio is clipped to [1 - clip_eps, 1 + clip_eps]", above=0, matters=lambda c: c.algorithm.ratio is not Ratio.drop
    )
    drop_low: float = key(0.125, "drop: smallest ratio of a token that counts", above=0, below=1, matters=_may_drop)
    drop_high: float = key(8.0, "drop: largest ratio of a token that counts", above=1, matters=_may_drop)
    kl_coef: float = key(0.0, "weight of the KL penalty against the base model; 0: none", least=0)
    lag: int = key(0, "optimizer steps by which the generating weights are behind the trainer's", least=0, most=1)


def _has_moments(config: Any) -> bool:
    return config.optimizer.name is not OptimizerName.sgd


@dataclass
class OptimizerConfig:
    """The optimizer of the ticket's values."""

    name: OptimizerName = key(OptimizerName.adamw, "optimizer")
    beta1: float = key(0.9, "Adam: decay of the first moment", least=0, below=1, matters=_has_moments)
    beta2: float = key(0.999, "Adam: decay of the second moment", least=0, below=1, matters=_has_moments)
    eps: float = key(1e-8, "Adam: added to the denominator", above=0, matters=_has_moments)
    momentum: float = key(0.0, "sgd: momentum", least=0, matters=lambda c: not _has_moments(c))
    weight_decay: float = key(0.01, "weight decay of the active entries", least=0)
    decay: Decay = key(
        Decay.plain, "adamw: share that weight decay takes", later=True, matters=lambda c: c.optimizer.name is OptimizerName.adamw
    )
    max_grad_norm: float = key(1.0, "gradients are clipped to this norm", above=0)
    clip_norm: ClipNorm = key(ClipNorm.masked, "gradient whose norm is clipped")
    weight_gradient: WeightGradient = key(WeightGradient.auto, "how weight gradients are computed")


@dataclass
class RolloutConfig:
    """Generation of completions."""

    engine: str = key("hf", "what generates: the trainer's model, vLLM in this process, or vLLM behind mth.serve", group="rollout")
    group_size: int = key(16, "completions per prompt", least=2)
    max_tokens: int = key(96, "most tokens of a reply", least=1)
    temperature: float = key(1.0, "sampling temperature in training", above=0)
    logprobs: Logprobs = key(Logprobs.engine, "old log-probabilities in the ratio")
    dtype: Dtype | None = key(
        None, "number format of the generating weights; null: the model's", matters=lambda c: c.rollout.dtype is not c.model.dtype
    )
    batch_size: int = key(256, "sequences generated at a time", least=1)
    cuda_graphs: bool = key(True, "hf on a GPU: launch all kernels of a token at once; false: one after another", place=True)
    context: int | None = key(
        None, "vLLM: most tokens of prompt and reply; null: the model's", least=2, matters=lambda c: c.rollout.engine != "hf"
    )
    gpu_memory_utilization: float = key(0.4, "vLLM: share of the GPU's memory; the trainer needs the rest", place=True, above=0, below=1)
    kv_cache_mib: int | None = key(None, "vLLM: size of the key-value cache in MiB; null: as needed", place=True, least=1)
    url: str = key("http://127.0.0.1:8711", "vllm_server: where mth.serve listens", place=True)
    timeout_s: float = key(1800.0, "vllm_server: limit of a call, in seconds", place=True, above=0)


@dataclass
class CollapseConfig:
    """When a run counts as collapsed; `mth.training.collapse` states the rule."""

    window: int = key(10, "steps that are averaged", least=1)
    reward_share: float = key(0.5, "collapsed if the mean reward falls below this share of the best")
    entropy_factor: float = key(4.0, "collapsed if the entropy rises above this multiple of the first, with reward below the best")
    min_entropy: float = key(1e-4, "collapsed if the entropy falls below this, in nats, with reward below the best")
    stop: bool = key(False, "end a collapsed run")


@dataclass
class CheckpointConfig:
    """Checkpoints of a run."""

    every: int = key(10, "steps between checkpoints; 0: only at the end", least=0)
    keep: int = key(2, "how many of the latest stay", least=1)


def _collects(config: Any) -> bool:
    return config.spectrum.mode is not Collect.none


@dataclass
class SpectrumConfig:
    """Collection of one gradient per step, before clipping (paper, appendix B)."""

    mode: Collect = key(Collect.none, "gradients to keep")
    dtype: Dtype = key(Dtype.float32, "exact: number format on disk", matters=_collects)
    width: int = key(
        65536, "sketch: numbers kept per gradient; inner products are off by about sqrt(2 / width)", least=1, matters=_collects
    )
    seed: int = key(0, "sketch: seed of the projection", least=0, matters=_collects)


@dataclass
class TrainConfig:
    """The training loop."""

    steps: int = key(100, "optimizer steps", least=1)
    batch_size: int = key(256, "rollouts per step, a multiple of rollout.group_size", least=1)
    micro_batch_tokens: int = key(16384, "padded tokens that one forward pass may hold", least=1)
    prompt_order: PromptOrder = key(PromptOrder.epochs, "order of the prompts")


@dataclass
class TrackerConfig:
    """Experiment tracking."""

    name: TrackerName = key(TrackerName.mlflow, "where metrics go beside the journal")
    also: list[str] = key([], "further trackers at the same time; tracker=[mlflow,wandb] sets both keys", group="tracker")
    uri: str | None = key(None, "MLflow tracking server or store; null: multirun/mlflow.db")
    experiment: str = key("mth", "MLflow experiment, W&B project")

    @property
    def chosen(self) -> list[str]:
        """Names of all trackers, without repeats; empty if there is none."""
        return [name for name in dict.fromkeys([self.name.name, *self.also]) if name != TrackerName.none.name]


@dataclass
class Config:
    """One run. Fills in what follows from other keys and validates itself; raises UserError naming the key."""

    model: ModelConfig = section(ModelConfig)
    task: TaskConfig = section(TaskConfig)
    sparsity: SparsityConfig = section(SparsityConfig)
    mask: MaskConfig = section(MaskConfig)
    mask_seed: int = key(0, "seed of the mask, and of nothing else", least=0, matters=lambda c: is_seeded(c.mask.family, c.mask.budget))
    seed: SeedConfig = section(SeedConfig)
    lr: LrConfig = section(LrConfig)
    algorithm: AlgorithmConfig = section(AlgorithmConfig)
    optimizer: OptimizerConfig = section(OptimizerConfig)
    rollout: RolloutConfig = section(RolloutConfig)
    eval: EvalConfig = section(EvalConfig)
    train: TrainConfig = section(TrainConfig)
    spectrum: SpectrumConfig = section(SpectrumConfig)
    collapse: CollapseConfig = section(CollapseConfig)
    checkpoints: CheckpointConfig = section(CheckpointConfig, place=True)
    samples: SamplesConfig = section(SamplesConfig, place=True)
    tracker: TrackerConfig = section(TrackerConfig, place=True)
    run_dir: str | None = key(None, "folder of the run or grid; null: multirun/<date>/<time>", place=True)
    resume: bool = key(False, "continue the newest unfinished run of this configuration, or fail", place=True)
    checkpoint: str | None = key(None, "mth.evaluate: checkpoint file or run folder", place=True)
    force: bool = key(False, "start anew, whatever finished, unfinished or shorter runs there are", place=True)
    detach: bool = key(False, "grids: return once the grid is submitted", place=True)

    def __post_init__(self) -> None:
        self.model.path, self.model.tokenizer = one_spelling(self.model.path), one_spelling(self.model.tokenizer)
        self.task.path = one_spelling(self.task.path)
        self.eval.paths = {name: one_spelling(path) for name, path in self.eval.paths.items()}
        if self.model.path is None and self.model.name in RATES:
            self.model.lr_table = self.model.lr_table or self.model.name
        elif self.model.path is not None and self.model.name == "tiny":  # only the path was given
            self.model.name = Path(self.model.path).name
        settle(self)
        if self.eval.tasks is None:
            self.eval.tasks = [self.task.name]
        if self.eval.max_tokens is None:
            self.eval.max_tokens = self.rollout.max_tokens
        check_ranges(self, own_names(self))
        self._keep_differences_in_evaluation()
        check_rules(self)
        if self.lr.value is None and self.model.lr_table is not None:
            self.lr.value = table_lr(self.model.lr_table, self.sparsity.percent)
        if self.lr.value is not None and self.lr.factor != 1:
            self.lr = LrConfig(float(f"{self.lr.value * self.lr.factor:.6g}"))
        if self.sparsity.percent == 0:  # full fine-tuning is the same run whatever mask it might have had
            self.mask, self.mask_seed = MaskConfig(), 0
        reset_idle(self)

    def _keep_differences_in_evaluation(self) -> None:
        """Leave in eval.per_task only evaluated tasks, and only what differs from the values for all tasks."""
        of_task = (getattr(self.task, key) for key in OF_A_TASK)
        shared = EvalOverride(self.eval.samples, self.eval.replies, self.eval.temperature, self.eval.max_tokens, *of_task)
        kept = {}
        for name, own in self.eval.per_task.items():
            differing = {k: None if v == getattr(shared, k) else v for k, v in vars(own).items()}
            if name in (self.eval.tasks or []) and any(v is not None for v in differing.values()):
                kept[name] = EvalOverride(**differing)
        self.eval.per_task = kept

    @property
    def prompts_per_step(self) -> int:
        """Prompts of one optimizer step."""
        return self.train.batch_size // self.rollout.group_size

    @property
    def mask_name(self) -> str:
        """The mask family and its options in words: `first layer, matched`; the family alone if it has no options."""
        options = [option.name for option in (self.mask.budget, self.mask.magnitude) if option is not None]
        options += [f"{key}={option}" for key, option in sorted(self.mask.options.items())]
        return ", ".join([self.mask.family, *options]).replace("_", " ")

    @property
    def label(self) -> str:
        """A short readable name: model, task, sparsity, mask, mask seed, learning rate."""
        words = self.mask_name.replace(" ", "_").replace(",_", "-")
        mask = "" if words == "random" else f"-{words}"
        return f"{self.model.name}-{self.task.name}-s{self.sparsity.percent:.9g}{mask}-m{self.mask_seed}-lr{self.lr.value or 0:g}"
