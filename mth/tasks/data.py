"""Reading rows through Hugging Face `datasets`: a hub id, or local jsonl, json or parquet files with the same columns."""

import os
from pathlib import Path
from typing import Any

from mth.errors import UserError

FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def local_file(path: Path, split: str) -> tuple[Path, bool] | None:
    """The file that holds a split under `path`, and whether it is that split's own file (a folder's `train.jsonl`) or one file for all.

    None when `path` does not exist locally. Raises UserError when a folder has no file for the split.
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


def check_exists(key: str, path: str) -> None:
    """Raise UserError, naming the key, when a path that can only be a local one is not there."""
    if (path.startswith((".", os.sep)) or Path(path).suffix in FORMATS) and not Path(path).exists():
        raise UserError(f"{key}={path} does not exist")


def read_rows(path: str, split: str, columns: tuple[str, ...], subset: str | None = None) -> tuple[list[dict[str, Any]], bool]:
    """All rows of a split, and whether the split has rows of its own (False: the same rows serve training and evaluation).

    path: hub id, file or folder. columns: needed; a missing one raises UserError, as do a missing file and an unreachable hub.
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
            check_exists("task.path", path)
            parts = get_dataset_config_names(path) if subset == "*" else [subset]
            rows = [row for part in parts for row in load_dataset(path, part, split=split)]
    except StopIteration:  # what `datasets` raises for a file without a line
        rows = []
    except (OSError, ValueError, DatasetsError) as error:
        raise UserError(f"task.path={path}: cannot be read ({str(error).strip().splitlines()[0][:160]})") from error
    if not rows:
        raise UserError(f"task.path={path}: no rows in split {split}")
    missing = [column for column in columns if column not in rows[0]]
    if missing:
        raise UserError(f"task.path={path}: column {', '.join(missing)} is missing; found {', '.join(rows[0])}")
    return rows, own
