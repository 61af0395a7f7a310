"""The settings of a report on the disk, so that its tables can be read again whatever number of settings they are split by."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mth.analysis.figures.base import Setting
from mth.foundations.errors import UserError, require

SETTINGS = "settings.csv"


def write_settings(settings: Sequence[Setting], out: Path) -> None:
    """Write `settings.csv`: one row per setting with the prefix of its files, its title, and the names of its runs on several rows."""
    rows = []
    for number, setting in enumerate(settings):
        prefix = f"{number + 1}_" if len(settings) > 1 else ""
        rows += [{"prefix": prefix, "setting": setting.title, "task": setting.config.task.name, "run": run.name} for run in setting.runs]
    pd.DataFrame(rows).to_csv(out / SETTINGS, index=False)


def read_settings(report: Path) -> pd.DataFrame:
    """`settings.csv` of a report: prefix, setting, task, run. Raises UserError if the folder has none."""
    require((report / SETTINGS).is_file(), f"{report} has no {SETTINGS}; make the report with python -m mth.report multirun")
    return pd.read_csv(report / SETTINGS, keep_default_na=False, dtype=str)


def read_table(report: Path, name: str) -> pd.DataFrame:
    """A table of a report over all its settings, with the setting in the first column. name: of its files, as `masks`.

    Settings without it are left out. Raises UserError if no setting has it.
    """
    parts = []
    for prefix, setting in read_settings(report)[["prefix", "setting"]].drop_duplicates().itertuples(index=False):
        path = report / f"{prefix}{name}.csv"
        if path.is_file():
            table = pd.read_csv(path)
            table.insert(0, "setting", setting)
            parts.append(table)
    if not parts:
        raise UserError(f"{report} has no {name}.csv; its page says under 'Missing or collapsed' what the runs lack for it")
    return pd.concat(parts, ignore_index=True)
