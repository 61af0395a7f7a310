"""Finds the folders of a configuration again: the same run, or a shorter one that is its beginning."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mth.config.choices import Collect, is_seeded
from mth.config.identity import identity, prefix_identity
from mth.config.schema import Config
from mth.config.stored import flat, from_plain, read_yaml, to_plain
from mth.foundations.errors import UserError
from mth.foundations.files import copy_file, write_json
from mth.runs.contents import known_contents
from mth.runs.folder import DONE, RunFolder
from mth.runs.journal import is_due, read_journal, without_evaluation, write_journal
from mth.runs.samples import copy_samples

# Compared as text before an identity is computed, which is slower.
PREFILTER_KEYS = ("seed.train", "lr.value", "model.name", "task.name")
MASK_KEYS = ("sparsity.percent", "mask_seed")  # of which a stored configuration may hold values without effect

SKIPPED_FOLDERS = {"code", "checkpoints", "base", "spectrum", "samples", "report", "mlartifacts"}


def run_folders(folder: Path) -> Iterator[Path]:
    """Run folders at or below `folder`, in order. Does not look into frozen code, checkpoints and reports."""
    for place, inner, files in os.walk(folder):
        inner[:] = sorted(name for name in inner if name not in SKIPPED_FOLDERS)
        run = RunFolder(Path(place))
        if run.config_file.name in files and {run.journal_file.name, run.record_file.name, run.summary_file.name} & set(files):
            yield run.path


def find_runs(roots: Iterable[Path], configs: Sequence[Config]) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Run folders under `roots`, by identity of `configs`: those of the same run, newest first, and those of finished runs that are its
    beginning, longest first.

    A run that keeps gradients has no beginning, because gradients are not in a checkpoint. Damaged folders are passed over.
    """
    wanted = {prefix_identity(config) for config in configs}
    prefilter = {_prefilter(to_plain(config)) for config in configs}
    found: dict[str, dict[Path, tuple[int, float]]] = {}  # prefix identity -> folder -> steps, time of the last change
    for path in (path for root in dict.fromkeys(roots) for path in root.rglob("config.yaml")):
        try:
            data = read_yaml(path)
            if _prefilter(data) in prefilter:
                stored = from_plain(data)
                if (name := prefix_identity(stored)) in wanted:
                    found.setdefault(name, {})[path.parent.resolve()] = stored.train.steps, path.parent.stat().st_mtime
        except (UserError, OSError):
            continue
    same, beginnings = {}, {}
    for config in configs:
        name, steps, folders = identity(config), config.train.steps, found.get(prefix_identity(config), {})
        newest = sorted(folders, key=lambda path: -folders[path][1])
        if equal := [path for path in newest if folders[path][0] == steps]:
            same[name] = equal
        shorter = [path for path in newest if folders[path][0] < steps and _can_be_extended(path)]
        if shorter and config.spectrum.mode is Collect.none:
            beginnings[name] = sorted(shorter, key=lambda path: -folders[path][0])
    return same, beginnings


def _prefilter(data: dict[str, Any]) -> tuple[str, ...]:
    values = flat(data)
    seeded = is_seeded(str(values.get("mask.family")), values.get("mask.budget"))
    return tuple(str(values.get(key)) for key in (*PREFILTER_KEYS, *(MASK_KEYS if seeded else ())))


def _can_be_extended(run_dir: Path) -> bool:
    return RunFolder(run_dir).status in DONE and _last_checkpoint(run_dir).is_file()


def _last_checkpoint(run_dir: Path) -> Path:
    """Where the checkpoint of an ended run's last step is, unless it was deleted."""
    from mth.runs.checkpoint import checkpoint_path

    return checkpoint_path(run_dir, RunFolder(run_dir).summary().steps)


def copy_beginning(source: Path, run_dir: Path, config: Config) -> None:
    """Give a new run's folder the journal, the samples and the last checkpoint of a shorter run, so that it goes on where that one ended.

    config: of the new run. The shorter run evaluated its last step; that evaluation is copied only if the new run, too, evaluates this step:
    because it is due, or because a collapse ends the run there.
    """
    old, new, last = RunFolder(source), RunFolder(run_dir), _last_checkpoint(source)
    end = old.summary()
    evaluated = is_due(end.steps, config.eval.every) or (end.status == "collapsed" and config.collapse.stop)
    write_journal(run_dir, (entry if evaluated or entry.step < end.steps else without_evaluation(entry) for entry in read_journal(source)))
    known = {"steps": end.steps, "code": old.record().get("code"), "contents": known_contents(source)}
    write_json(new.beginning_file, {"run": str(source), **known})
    copy_samples(old.samples, new.samples, end.steps, evaluated)
    copy_file(last, new.checkpoints / last.name)  # this makes the folder one to be continued, so it comes last
