"""What a figure of the report is, what it is made from, and what it makes."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pandas as pd
from matplotlib.figure import Figure

from mth.analysis.aggregate import series
from mth.analysis.collection import Run
from mth.analysis.needs import Need, all_runs, need
from mth.config.schema import Config
from mth.foundations.errors import UserError
from mth.runs.metrics import EVAL_REWARD, PASS_AT_1, eval_metric

INTERVAL = "low, high: 95 % interval of the mean, bootstrap over masks."  # part of captions
SEEDS = "Full training has several training seeds: its std, band and interval are over them."  # part of captions, where it has
CARRIED = "A run that its collapse ended keeps its last value in the mean."  # part of captions, where `collapse.stop` is on
ERRORS = "Errors are standard errors over prompts, paired where two results are compared."  # part of captions
UNROUNDED = ("lr", "learning rate", "sparsity", "sparsity %", "percent")  # columns that keep all their digits


@dataclass
class Item:
    """One part of the page.

    slug: name of its files. need: its experiment, whose missing runs the page names. data: further tables, written as CSV only.
    advice: a sentence and commands that would improve the item.
    """

    slug: str
    title: str
    caption: str
    figure: Figure | None = None
    table: pd.DataFrame | None = None
    need: Need | None = None
    data: dict[str, pd.DataFrame] = field(default_factory=dict)
    advice: tuple[str, list[str]] = ("", [])


@dataclass(frozen=True)
class Setting:
    """Runs of the same model, task, steps and algorithm, evaluated on the same prompts.

    metric: what is shown, the part of a name behind eval/<task>/. note: ends the title, where other settings have the same one.
    """

    runs: list[Run]
    metric: str = PASS_AT_1
    note: str = ""

    @property
    def config(self) -> Config:
        """Configuration of the first run with the most common training seed."""
        common = Counter(run.config.seed.train for run in self.runs).most_common(1)[0][0]
        return next(run.config for run in self.runs if run.config.seed.train == common)

    @property
    def title(self) -> str:
        config = self.config
        note = f", {self.note}" if self.note else ""
        return f"{config.model.name} on {config.task.name}, {config.train.steps} steps of {config.train.batch_size} rollouts{note}"

    @property
    def tasks(self) -> list[str]:
        """The evaluated tasks."""
        return self.config.eval.tasks or []

    @property
    def label(self) -> str:
        """The metric as a label of an axis."""
        return f"{metric_name(self.metric)}, held-out prompts"

    def key(self, task: str) -> str:
        """Name of the shown metric on a task."""
        return eval_metric(task, self.metric)

    def usable(self, runs: Sequence[Run], task: str) -> list[Run]:
        """The runs that are done and have the metric on a task. Raises UserError if there are none."""
        if not any(run.done for run in runs):
            raise UserError("no finished run here is one of its runs")
        found = [run for run in runs if run.done and len(series(run, self.key(task)))]
        if not found:
            raise UserError(f"no finished run has the metric {self.key(task)}")
        return found


@dataclass(frozen=True)
class FigureSpec:
    """A figure of the report; each file of this folder exports one as FIGURE.

    make(setting, need): the figure's items; none if another figure says why there are none. Raises UserError to say why it cannot be made.
    position: order on the page. experiments: files of conf/experiment/ that it belongs to; none: it takes every run of a setting.
    ignore: sections and keys in which a run may differ from the experiment's cells.
    """

    name: str
    make: Callable[[Setting, Need], list[Item]]
    position: int
    experiments: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ("mask_seed",)

    def experiment(self, config: Config) -> str | None:
        """The experiment file for a model. Of several that name a model's size at the end, as in `_0.5b`, the one of that size, else the first."""
        fitting = [name for name in self.experiments if name.rpartition("_")[2] in config.model.name]
        return next(iter([*fitting, *self.experiments]), None)

    def need(self, setting: Setting) -> Need:
        """The runs of the setting that the figure takes. Raises UserError if the files in conf/ cannot express the setting."""
        name = self.experiment(setting.config)
        return all_runs(setting.runs) if name is None else need(name, setting.config, setting.runs, self.ignore)


def metric_name(metric: str) -> str:
    """A metric in words. metric: the part of its name behind eval/<task>/."""
    return {PASS_AT_1: "pass@1", EVAL_REWARD: "mean reward"}.get(metric, metric)


def seeds_of(full: Sequence[Run]) -> str:
    """Full training in words: how many training seeds it has, if several."""
    return f"full training, {len(full)} seeds" if len(full) > 1 else "full training"


def rounded(values: dict[str, float], digits: int = 4) -> dict[str, float]:
    """The values rounded."""
    return {key: round(value, digits) for key, value in values.items()}


def rounded_table(table: pd.DataFrame, digits: int = 4) -> pd.DataFrame:
    """The table with its numbers rounded, except for the columns in UNROUNDED."""
    kept = [column for column in UNROUNDED if column in table]
    return table.round({column: digits for column in table.select_dtypes("number") if column not in kept}).reset_index(drop=True)
