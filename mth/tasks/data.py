"""Reads rows from a hub id, with Hugging Face `datasets`, or from local jsonl, json or parquet files with the same columns."""

import os
from pathlib import Path

from mth.foundations.errors import UserError, first_line
from mth.tasks.files import READERS, Row, files_of_split, read_file

FORMATS = tuple(READERS)


def looks_local(source: str) -> bool:
    """Returns True if a source is a path on this machine and not a hub id."""
    return _is_path(source) or Path(source).exists()


def _is_path(source: str) -> bool:
    """Returns True for what cannot be a hub id, whether it exists or not."""
    return source.startswith((".", os.sep)) or Path(source).suffix in FORMATS


def read_rows(path: str, split: str, columns: tuple[str, ...], subset: str | None = None) -> tuple[list[Row], bool]:
    """All rows of a split, and whether they belong to this split only. If not, the same rows serve training and evaluation.

    path: hub id, file or folder. columns: those that a row must have. subset: configuration of a data set; `*` reads all of them.
    Raises UserError if a file or column is missing, if a file cannot be read, or if the hub cannot be reached.
    """
    found = files_of_split(Path(path), split, subset)
    if found is not None:
        rows, own = [row for file in found[0] for row in read_file(file)], found[1]
    else:
        if _is_path(path):
            raise UserError(f"task.path={path} does not exist")
        rows, own = _hub_rows(path, split, subset), True
    if not rows:
        raise UserError(f"task.path={path}: no rows in split {split}")
    missing = [column for column in columns if column not in rows[0]]
    if missing:
        raise UserError(f"task.path={path}: column {', '.join(missing)} is missing; found {', '.join(map(str, rows[0]))}")
    return rows, own


def _hub_rows(path: str, split: str, subset: str | None) -> list[Row]:
    """All rows of a split of a data set of the hub. Raises UserError if the hub cannot be reached, or has no such data set."""
    from datasets import disable_progress_bars, get_dataset_config_names, load_dataset
    from datasets.exceptions import DatasetsError

    disable_progress_bars()
    try:
        subsets = get_dataset_config_names(path) if subset == "*" else [subset]
        return [row for name in subsets for row in load_dataset(path, name, split=split)]
    except (OSError, ValueError, DatasetsError) as error:
        raise UserError(f"task.path={path}: cannot be read ({first_line(error, 160)})") from error
