"""Reads rows with Hugging Face `datasets`, from a hub id or from local jsonl, json or parquet files with the same columns."""

import os
from pathlib import Path
from typing import Any

from mth.foundations.errors import UserError, first_line

FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def local_file(path: Path, split: str) -> tuple[Path, bool] | None:
    """The file that holds a split, and whether it holds this split only (`train.jsonl` in a folder) or all rows.

    Returns None if `path` does not exist on this machine. Raises UserError if a folder has no file for the split.
    """
    if path.is_file():
        return path, False
    if not path.is_dir():
        return None
    for suffix in FORMATS:
        if (path / f"{split}{suffix}").is_file():
            return path / f"{split}{suffix}", True
    data = sorted(file for file in path.iterdir() if file.suffix in FORMATS)
    if len(data) == 1 and data[0].stem not in ("train", "test"):
        return data[0], False
    raise UserError(f"{path} has no {split}.jsonl or {split}.parquet")


def looks_local(source: str) -> bool:
    """Returns True if a source is a path on this machine and not a hub id."""
    return _is_path(source) or Path(source).exists()


def _is_path(source: str) -> bool:
    """Returns True for what cannot be a hub id, whether it exists or not."""
    return source.startswith((".", os.sep)) or Path(source).suffix in FORMATS


def read_rows(path: str, split: str, columns: tuple[str, ...], subset: str | None = None) -> tuple[list[dict[str, Any]], bool]:
    """All rows of a split, and whether they belong to this split only. If not, the same rows serve training and evaluation.

    path: hub id, file or folder. columns: those that a row must have. subset: configuration of a hub dataset; `*` reads all of them.
    Raises UserError if a file or column is missing, if a file cannot be read, or if the hub cannot be reached.
    """
    from datasets import disable_progress_bars, get_dataset_config_names, load_dataset
    from datasets.exceptions import DatasetsError

    disable_progress_bars()
    found = local_file(Path(path), split)
    own = True
    try:
        if found is not None:
            file, own = found
            if file.suffix not in FORMATS:
                raise UserError(f"task.path={path}: only {', '.join(FORMATS)} files are read")
            data = load_dataset(FORMATS[file.suffix], data_files=str(file), split="train")
            rows = list(data)
        else:
            if _is_path(path):
                raise UserError(f"task.path={path} does not exist")
            subsets = get_dataset_config_names(path) if subset == "*" else [subset]
            rows = [row for name in subsets for row in load_dataset(path, name, split=split)]
    except StopIteration:  # `datasets` raises this for an empty file
        rows = []
    except (OSError, ValueError, DatasetsError) as error:
        raise UserError(f"task.path={path}: cannot be read ({first_line(error, 160)})") from error
    if not rows:
        raise UserError(f"task.path={path}: no rows in split {split}")
    missing = [column for column in columns if column not in rows[0]]
    if missing:
        raise UserError(f"task.path={path}: column {', '.join(missing)} is missing; found {', '.join(rows[0])}")
    return rows, own
