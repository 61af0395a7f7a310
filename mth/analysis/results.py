"""From the runs of one setting (same model, task, steps, algorithm) to the report's items: a figure, a table, what is missing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mth.analysis import draw
from mth.analysis.aggregate import curve, last, series, successes, summary
from mth.analysis.forgetting import by_run, changes
from mth.analysis.needs import Need, need
from mth.analysis.rates import LAST_STEPS, at_best_rates, best_rates, selection_score
from mth.analysis.runs import Run
from mth.analysis.spectrum import center, spectrum, stored_gram
from mth.analysis.tables import overlap_tables
from mth.analysis.theory import stored_theory
from mth.config import Collect, MaskFamily
from mth.errors import UserError

RANK = 8  # of the subspace in the theory's figures
THEORY_LEVELS = (50, 90, 99, 99.9, 99.99)
THEORY_SEEDS = (0, 10, 42)
INTERVAL = "low, high: 95 % interval of the mean, bootstrap over masks."


@dataclass
class Item:
    """One part of a report. need: the experiment behind it, and what of it is missing. data: further tables, written as CSV only.

    advice: what would improve it, and the commands for that.
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
    """runs: all of one setting. metric: pass_at_1, reward, ..., the part behind eval/<task>/."""

    runs: list[Run]
    metric: str = "pass_at_1"

    @property
    def title(self) -> str:
        config = self.runs[0].config
        return f"{config.model.name} on {config.task.name}, {config.train.steps} steps of {config.train.batch_size} rollouts"

    @property
    def tasks(self) -> list[str]:
        return self.runs[0].config.eval.tasks or []

    def key(self, task: str) -> str:
        return f"eval/{task}/{self.metric}"

    def usable(self, runs: Sequence[Run], task: str) -> list[Run]:
        """Runs that are done and have the metric. Raises UserError when there are none."""
        if not any(run.done for run in runs):
            raise UserError("no finished run here is one of its runs")
        found = [run for run in runs if run.done and len(series(run, self.key(task)))]
        if not found:
            raise UserError(f"no finished run has the metric {self.key(task)}")
        return found


def is_full(run: Run) -> bool:
    return run.config.sparsity.percent == 0


def masks_item(setting: Setting, needed: Need) -> Item:
    """Figures 1 and 2: many masks at one sparsity against full training."""
    figure, axes = draw.panels(len(setting.tasks))
    rows, words = [], []
    for task, each in zip(setting.tasks, axes, strict=True):
        runs = at_best_rates(setting.usable(needed.runs, task))
        key = setting.key(task)
        full, sparse = [run for run in runs if is_full(run)], [run for run in runs if not is_full(run)]
        if not sparse:
            raise UserError(f"no finished run of {needed.experiment} has a mask")
        percent = sparse[0].config.sparsity.percent
        draw.masks(each, [series(run, key) for run in sparse], curve(sparse, key), curve(full, key), f"mean of {len(sparse)} masks")
        each.set(title=f"{task}, {percent:g} % sparsity", ylabel=_label(setting))
        finals = [last(run, key) for run in sparse]
        reference = float(np.mean([last(run, key) for run in full])) if full else float("nan")
        row = {"task": task, "sparsity %": percent, "masks": len(sparse), "collapsed": sum(run.status == "collapsed" for run in sparse)}
        row |= _rounded(summary(finals)) | {"worst": min(finals), "best": max(finals), "full": reference}
        if full:
            hits, count, threshold = successes(finals, reference)
            row |= {"successes": hits, "threshold": round(threshold, 4)}
            words.append(f"{task}: {hits} of {count} masks at or above full training minus one std of the masks ({threshold:.3f}).")
        rows.append(row)
    caption = " ".join([f"Thin lines are masks, the band is one std, full training is dashed. {INTERVAL}", *words])
    return Item("masks", "Many random masks (Figures 1 and 2)", caption, figure, pd.DataFrame(rows), needed)


def sparsity_item(setting: Setting, needed: Need) -> Item:
    """Figure 3: result by sparsity, each level at its best learning rate."""
    figure, axes = draw.panels(len(setting.tasks))
    tables: list[pd.DataFrame] = []
    advice: list[str] = []
    for task, each in zip(setting.tasks, axes, strict=True):
        key = setting.key(task)
        runs = setting.usable(needed.runs, task)
        rates = best_rates(runs)
        rows, dots = [], {}
        for percent, rate in rates.items():
            level = [run for run in runs if run.config.sparsity.percent == percent]
            here = [run for run in level if run.config.lr.value == rate]
            finals = [last(run, key) for run in here]
            dots[percent] = [(value, run.status == "collapsed") for value, run in zip(finals, here, strict=True)]
            tried = len({run.config.lr.value for run in level})
            others = {run.config.mask_seed for run in level} & needed.mask_seeds
            unseen = sorted(others - {run.config.mask_seed for run in here})
            if unseen:  # the best rate has fewer masks than another one
                seeds = ",".join(map(str, unseen))
                advice.append(f"{needed.command} sparsity.percent={percent:g} lr.value={rate:g} mask_seed={seeds}")
            row = {"task": task, "sparsity": percent, "learning rate": rate, "rates tried": tried}
            rows.append(row | summary(finals) | {"collapsed": sum(collapsed for _, collapsed in dots[percent])})
        table = pd.DataFrame(rows)
        sparse = table[table["sparsity"] > 0]
        full = table.loc[table["sparsity"] == 0, "mean"]
        base = float(np.nanmean([series(run, key).iloc[0] for run in runs]))
        draw.levels(each, sparse, dots, float(full.iloc[0]) if len(full) else float("nan"), base)
        each.set(title=task, ylabel=f"{_label(setting)}, after training")
        tables.append(table)
    caption = (
        f"Each level at the learning rate with the highest mean reward of the last {LAST_STEPS} training steps (training prompts), among "
        "those that were run, compared on the masks that all rates share; reported on held-out prompts. "
        f"Bars: one std over masks. {INTERVAL}"
    )
    item = Item("sparsity", "Result by sparsity (Figure 3)", caption, figure, _rounded_frame(pd.concat(tables)), needed)
    item.advice = ("Levels whose best rate has fewer masks than another rate:", list(dict.fromkeys(advice)))
    return item


def forgetting_item(setting: Setting, needed: Need) -> Item:
    """What training did to the tasks that were not trained."""
    trained = setting.runs[0].config.task.name
    others = [task for task in setting.tasks if task != trained]
    if not others:
        raise UserError(f"only {trained}, the task that was trained, was evaluated; add eval.tasks=[task,another]")
    names = {f"{trained} (trained)": setting.key(trained)} | {f"{task} (not trained)": setting.key(task) for task in others}
    runs = setting.usable(needed.runs, trained)
    table, each_run = changes(runs, names), by_run(runs, setting.key(trained), {task: setting.key(task) for task in others})
    figure, axes = draw.panels(1 + len(others))
    draw.forgetting(axes[0], table)
    axes[0].set(title=f"trained on {trained}, best learning rates", ylabel=f"change of {_label(setting)}")
    for task, each in zip(others, axes[1:], strict=True):
        draw.trade(each, each_run, task)
        each.set(title="every run, whatever its learning rate", xlabel=f"change on {trained} (trained)", ylabel=f"change on {task}")
    caption = (
        "Change from the base model to the end of training, runs as in Figure 3. Left: each level at its best learning rate; bars: one std "
        f"over masks. Right: every run of the sweep, so that levels can be compared at equal gain. {INTERVAL}"
    )
    data = {"forgetting_runs": _rounded_frame(each_run)}
    return Item("forgetting", "Gain and forgetting by sparsity", caption, figure, _rounded_frame(table), needed, data)


def structured_item(setting: Setting, needed: Need) -> Item:
    """Figures 5 and 6: a random mask against single layers, with the same budget and whole."""
    figure, axes = draw.panels(len(setting.tasks))
    rows = []
    for task, each in zip(setting.tasks, axes, strict=True):
        key = setting.key(task)
        runs = setting.usable(needed.runs, task)
        groups: dict[str, list[Run]] = {}
        for run in runs:
            groups.setdefault(_mask_name(run), []).append(run)
        tried = {name: {run.config.lr.value for run in group} for name, group in groups.items()}
        groups = {name: at_best_rates(group) for name, group in groups.items()}
        collapsed = {name: sum(run.status == "collapsed" for run in group) for name, group in groups.items()}
        named = {
            name + (f" ({collapsed[name]} of {len(group)} collapsed)" if collapsed[name] else ""): curve(group, key)
            for name, group in groups.items()
            if name != "full training"
        }
        draw.curves(each, named, curve(groups.get("full training", []), key))
        each.set(title=task, ylabel=_label(setting))
        for name, group in groups.items():
            active = sorted(int(run.facts["active_parameters"]) for run in group if "active_parameters" in run.facts)
            head = {"task": task, "mask": name, "active": active[0] if active else None, "learning rate": group[0].config.lr.value}
            values = _rounded(summary([last(run, key) for run in group]))
            rows.append(head | {"rates tried": len(tried[name])} | values | {"collapsed": collapsed[name]})
    caption = (
        f"Each at its best learning rate among those run (reward of the last {LAST_STEPS} training steps). "
        "matched: as many entries as the random mask has, inside one decoder layer; whole layer: every entry of it. Full training is dashed. "
        f"{INTERVAL}"
    )
    return Item("structured", "Single layers against a random mask (Figures 5 and 6)", caption, figure, pd.DataFrame(rows), needed)


def _mask_name(run: Run) -> str:
    mask = run.config.mask
    if is_full(run):
        return "full training"
    if mask.family is MaskFamily.random:
        return f"random, {run.config.sparsity.percent:g} %"
    option = mask.budget or mask.magnitude
    return f"{mask.family.name.replace('_', ' ')}, {option.name.replace('_', ' ') if option else ''}"


def rates_item(setting: Setting, needed: Need) -> Item:
    """Figure 7: result over learning rate at each sparsity."""
    figure, axes = draw.panels(len(setting.tasks))
    tables = []
    for task, each in zip(setting.tasks, axes, strict=True):
        key = setting.key(task)
        runs = setting.usable(needed.runs, task)
        rows, chosen = [], best_rates(runs)
        for percent, rate in sorted({(run.config.sparsity.percent, run.config.lr.value or 0) for run in runs}):
            here = [run for run in runs if (run.config.sparsity.percent, run.config.lr.value) == (percent, rate)]
            row = {"task": task, "sparsity": percent, "lr": rate} | summary([last(run, key) for run in here])
            score, collapsed = np.mean([selection_score(run) for run in here]), sum(run.status == "collapsed" for run in here)
            rows.append(row | {"reward on training prompts": score, "chosen": chosen[percent] == rate, "collapsed": collapsed})
        table = pd.DataFrame(rows)
        if table.groupby("sparsity")["lr"].nunique().max() < 2:
            raise UserError("no sparsity was run at two learning rates")
        draw.rates(each, table, chosen)
        each.set(title=task, ylabel=f"{_label(setting)}, after training")
        tables.append(table)
    caption = (
        f"Ring: the rate with the highest mean reward of the last {LAST_STEPS} training steps at that sparsity, compared on the masks that all "
        f"its rates share. Bars: one std over masks. {INTERVAL}"
    )
    return Item("learning_rates", "Learning rates (Figure 7)", caption, figure, _rounded_frame(pd.concat(tables)), needed)


def spectrum_items(setting: Setting, needed: Need) -> list[Item]:
    """Figure 4, and the paper's assumptions where gradients were kept whole."""
    collected = [run for run in needed.runs if run.path is not None and run.config.spectrum.mode is not Collect.none]
    run = max(collected, key=lambda run: (run.done, run.config.spectrum.mode is Collect.exact), default=None)
    if run is None or run.path is None:
        raise UserError("no run has gradients")
    header, steps, gram = stored_gram(run.path)
    _check_collection(run, header)
    exact = header["mode"] == "exact"
    width = None if exact else header["width"]
    both = {"uncentred": spectrum(gram, width), "centred": spectrum(center(gram), width)}
    error = max(each.error for each in both.values())
    figure, axes = draw.panels(2)
    draw.spectra(axes, {name: each.eigenvalues for name, each in both.items()}, error)
    table = pd.DataFrame({name: each.ranks for name, each in both.items()}).round(2).rename_axis("effective rank").reset_index()
    how = "whole gradients" if exact else f"sketches of {header['width']:,} numbers; an eigenvalue may be off by {error:.2%} of the sum"
    caption = (
        f"{len(steps)} gradients of {header['entries']:,} entries, one per step before clipping, from {how}. "
        "The paper's effective rank of about 44 (150 gradients, Qwen2.5-0.5B) does not say its definition."
    )
    eigenvalues = pd.DataFrame({"number": np.arange(1, len(steps) + 1)} | {name: each.eigenvalues for name, each in both.items()})
    needed = replace(needed, missing=0 if run.done else 1)  # gradients kept in the other mode are as good
    item = Item("spectrum", "Spectrum of the gradients (Figure 4)", caption, figure, table, needed, {"eigenvalues": eigenvalues})
    if not exact:
        item.advice = ("The assumptions of appendix F need whole gradients:", [f"{needed.command} spectrum.mode=exact"])
        return [item]
    return [item, theory_item(run, run.path, min(RANK, len(steps) - 1), both["uncentred"].cumulative)]


def _check_collection(run: Run, header: dict[str, Any]) -> None:
    """Raise UserError when the gradients in a run's folder are not that run's."""
    own = {"model": run.config.model.name, "task": run.config.task.name, "mode": run.config.spectrum.mode.name}
    own |= {"mask_sha256": run.facts["mask_sha256"]} if "mask_sha256" in run.facts else {}
    for key, value in own.items():
        if header.get(key) != value:
            raise UserError(f"{run.name} has gradients of another run: their {key} is {header.get(key)}, the run's is {value}")


def theory_item(run: Run, path: Path, rank: int, cumulative: np.ndarray) -> Item:
    """Assumptions F.1 and F.2, lemma F.6 and proposition 5.2 on the gradients of a run of full training."""
    from mth.policy import parameter_shapes

    facts, found = stored_theory(path, parameter_shapes(run.config.model), rank, THEORY_LEVELS, THEORY_SEEDS)
    frame = pd.DataFrame([vars(each) for each in found])
    figure, axes = draw.panels(2)
    draw.concentration(axes, frame)
    table = frame.groupby(["percent", "active"], as_index=False)[["deviation", "bound", "error", "free"]].mean()
    caption = (
        f"F.1: the top {rank} eigenvectors hold {facts['share']:.1%} of the sum of eigenvalues. F.2: mu = sqrt(d) max|v| is "
        f"{min(facts['mu']):.0f} to {max(facts['mu']):.0f} for them (1 would be perfectly even, {np.sqrt(facts['entries']):.0f} a single entry). "
        f"Left: the restricted Gram matrix of {len(THEORY_SEEDS)} random masks per size against lemma F.6 (delta = 0.05). Right: relative error "
        "in the Fisher norm when an update of the top subspace is replaced by one on the mask's entries."
    )
    each = {"number": np.arange(1, rank + 1), "cumulative share": cumulative[:rank], "mu": facts["mu"]}
    data = {"eigenvectors": pd.DataFrame(each)}
    return Item("theory", "The assumptions of appendix F on these gradients", caption, figure, _rounded_frame(table, 5), None, data)


def overlap_item(setting: Setting) -> Item:
    """Table 3 of the masks that were trained here."""
    levels: dict[float, set[int]] = {}
    for run in setting.runs:
        if run.done and not is_full(run) and run.config.mask.family is MaskFamily.random:
            levels.setdefault(run.config.sparsity.percent, set()).add(run.config.mask_seed)
    several = {percent: sorted(seeds) for percent, seeds in sorted(levels.items()) if len(seeds) > 1}
    if not several:
        raise UserError("no sparsity has two finished runs with different random masks")
    from mth.policy import parameter_shapes

    config = setting.runs[0].config
    table, tensors = overlap_tables(config.model.name, parameter_shapes(config.model), several)
    caption = "Jaccard similarity of all pairs, counted exactly; per tensor in overlap_tensors.csv."
    return Item("overlap", "Overlap of the masks trained here (Table 3)", caption, None, table, None, {"overlap_tensors": tensors})


def memory_item(setting: Setting) -> Item:
    """What the runs allocated."""
    rows = []
    for run in setting.runs:
        parts = run.facts.get("ticket_bytes")
        if run.done and parts and "active_parameters" in run.facts:
            row = {"mask": _mask_name(run), "sparsity %": run.config.sparsity.percent, "active": run.facts["active_parameters"]}
            peak = run.facts.get("peak_memory_bytes", float("nan"))
            rows.append(row | {f"{key} KiB": value / 1024 for key, value in parts.items()} | {"peak MiB": peak / 2**20})
    if not rows:
        raise UserError("no finished run says what it allocated")
    table = pd.DataFrame(rows).groupby(["sparsity %", "mask", "active"], as_index=False).mean(numeric_only=True)
    caption = "Bytes of the ticket as allocated, and the peak memory of the process (of the GPU where one trained); means over runs."
    return Item("memory", "Memory of the runs (Table 5)", caption, None, _rounded_frame(table, digits=1))


def _label(setting: Setting) -> str:
    names = {"pass_at_1": "pass@1", "reward": "mean reward"}
    return f"{names.get(setting.metric, setting.metric)}, held-out prompts"


def _rounded(values: dict[str, float], digits: int = 4) -> dict[str, float]:
    return {key: round(value, digits) for key, value in values.items()}


def _rounded_frame(table: pd.DataFrame, digits: int = 4) -> pd.DataFrame:
    rates = [column for column in ("lr", "learning rate", "sparsity", "sparsity %", "percent") if column in table]
    return table.round({column: digits for column in table.select_dtypes("number") if column not in rates}).reset_index(drop=True)


Builder = Callable[[], list[Item]]
# Experiment files, what is made of their runs, and what may differ from their cells.
EXPERIMENTS: tuple[tuple[tuple[str, ...], Callable[[Setting, Need], Item | list[Item]], tuple[str, ...]], ...] = (
    (("fig1_masks_1.5b", "fig2_masks_0.5b"), masks_item, ("mask_seed",)),
    (("fig3_sparsity",), sparsity_item, ("mask_seed", "lr", "sparsity")),
    (("fig3_sparsity",), forgetting_item, ("mask_seed", "lr", "sparsity")),
    (("fig5_6_structured",), structured_item, ("mask_seed", "lr")),
    (("fig7_lr",), rates_item, ("mask_seed", "lr", "sparsity")),
    (("fig4_spectrum",), spectrum_items, ("spectrum",)),
)


def builders(setting: Setting) -> list[tuple[str, Need | None, Builder]]:
    """Name, need and maker of every item that the setting might have. Of experiments that are the same cells here, the first counts."""
    result: list[tuple[str, Need | None, Builder]] = []
    for names, make, ignore in EXPERIMENTS:
        mine = names[1] if len(names) > 1 and "0.5b" in setting.runs[0].config.model.name else names[0]
        try:
            needed = need(mine, setting.runs[0].config, setting.runs, ignore)
        except UserError as error:  # a setting that conf/ cannot express
            result.append((mine, None, partial(_refuse, error)))
            continue
        result.append((mine, needed, partial(_listed, make, setting, needed)))
    result.append(("overlap", None, lambda: [overlap_item(setting)]))
    result.append(("memory", None, lambda: [memory_item(setting)]))
    return result


def _refuse(error: UserError) -> list[Item]:
    raise error


def _listed(make: Callable[[Setting, Need], Item | list[Item]], setting: Setting, needed: Need) -> list[Item]:
    made = make(setting, needed)
    return made if isinstance(made, list) else [made]
