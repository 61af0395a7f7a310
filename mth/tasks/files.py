"""Rows of local files: which files of a folder hold a split, what they hold, and a cell as text.

The files are read here and not with `datasets`, which takes `[v1]` and `*` in a path for patterns and names neither row nor line of a fault.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mth.foundations.errors import UserError, first_line, require

Row = dict[str, Any]
SPLITS = ("train", "test", "validation", "valid", "dev", "eval")  # what the name of a file that holds one split begins with


def files_of_split(path: Path, split: str, subset: str | None = None) -> tuple[list[Path], bool] | None:
    """The files that hold a split, in order, and whether they hold this split only. None if `path` does not exist on this machine.

    Of a folder these are `train.jsonl`, or shards such as `train-00000-of-00002.parquet`, in the folder itself or in folders of
    configurations below it: that of `subset`, or all of them if it is `*`. A folder with a single file that names no split holds all rows in it.
    Raises UserError if a folder has no file for the split.
    """
    if path.is_file():
        return [path], False
    if not path.is_dir():
        return None
    inner = [folder for folder in sorted(path.iterdir()) if folder.is_dir() and _data_files(folder)]
    below = inner if subset == "*" or len(inner) == 1 else [folder for folder in inner if folder.name == subset]
    for folders in ([path], below):
        found = [file for folder in folders for file in _data_files(folder) if _split_of(file) == split]
        if found:
            return found, True
    data = _data_files(path)
    if len(data) == 1 and _split_of(data[0]) not in SPLITS:
        return data, False
    raise UserError(f"{path} has no {split}.jsonl, {split}.parquet or {split}-*.parquet")


def _data_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in READERS and file.is_file())


def _split_of(file: Path) -> str:
    """What stands before the number of a shard."""
    return file.stem.partition("-")[0]


def read_file(file: Path) -> list[Row]:
    """All rows of a file. Raises UserError naming the line if a row cannot be read or is no object."""
    require(file.suffix in READERS, f"task.path={file}: only {', '.join(READERS)} files are read")
    try:
        return list(READERS[file.suffix](file))
    except UnicodeDecodeError as error:
        raise UserError(f"task.path={file}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise UserError(f"task.path={file}: cannot be read ({first_line(error, 160)})") from error


def _json_rows(file: Path) -> Iterator[Row]:
    """A row on each line, or one list of rows."""
    text = file.read_bytes().decode("utf-8-sig")
    if text.lstrip().startswith("["):
        for number, row in enumerate(json.loads(text)):
            require(isinstance(row, dict), f"task.path={file}: row {number} is no object with columns")
            yield row
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"task.path={file}: cannot be read: line {number} is no JSON ({first_line(error, 80)})") from error
        require(isinstance(row, dict), f"task.path={file}: line {number} is no object with columns")
        yield row


def _parquet_rows(file: Path) -> Iterator[Row]:
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        yield from read_table(file).to_pylist()
    except ArrowException as error:
        raise ValueError(first_line(error, 160)) from error


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {".jsonl": _json_rows, ".json": _json_rows, ".parquet": _parquet_rows}


def text(cell: Any) -> str:
    """A text or a number as text; what is missing, or blank, is empty. Raises ValueError for anything else, such as a list."""
    if cell is None:
        return ""
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        raise ValueError(f"is {'true or false' if isinstance(cell, bool) else f'a {type(cell).__name__}'}, not text")
    return str(cell) if str(cell).strip() else ""


def text_of(row: Row, column: str, index: int, path: str) -> str:
    """A cell as text, empty if it is missing. Raises UserError, naming file, row and column, if it is neither text nor a number."""
    try:
        return text(row.get(column))
    except ValueError as error:
        raise UserError(f"task.path={path}: row {index}: column {column} {error}; write it as text") from error
