"""Code of a user: an object in a file or an importable module, named `path/to/file.py:name` or `package.module:name`.

`pinned` adds the digest of the code, as `...:name#digest`, which is how a configuration keeps it. Code that is no longer what was pinned is
refused. A grid's frozen copy of mth holds the user's code too, and is read first.
"""

import hashlib
import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from mth.foundations.errors import UserError, first_line, require
from mth.foundations.files import digest
from mth.foundations.paths import PACKAGE

FROZEN = "user_code"  # folder of a frozen copy that holds files
DIGEST_LENGTH = 16


@dataclass(frozen=True)
class Code:
    """place: path of a .py file, or dotted name of a module. name: of the object in it. digest: of the code; empty if it is not pinned."""

    place: str
    name: str
    digest: str = ""

    @property
    def is_file(self) -> bool:
        return self.place.endswith(".py")

    @property
    def shown(self) -> str:
        """As a user types it."""
        return f"{self.place}:{self.name}"

    @property
    def portable(self) -> str:
        """The same wherever the file lies: its name without the folder, and the digest."""
        return f"{os.path.basename(self.place) if self.is_file else self.place}:{self.name}#{self.digest}"


def parse(text: str, key: str) -> Code:
    """Read `place:name` or `place:name#digest`. key: named by the UserError for any other text."""
    shown, _, pin = text.partition("#")
    place, _, name = shown.rpartition(":")
    good = name.isidentifier() and (place.endswith(".py") or all(part.isidentifier() for part in place.split(".")))
    require(good, f"{key}={shown} must be like path/to/file.py:name or package.module:name")
    return Code(place, name, pin)


def pinned(text: str, key: str) -> str:
    """The same code with the file's absolute path and the digest. Code that is pinned stays as it is.

    Runs no code. Raises UserError if there is no such file or module.
    """
    code = parse(text, key)
    if code.digest:
        return text
    if code.is_file:
        code = Code(os.path.abspath(os.path.expanduser(code.place)), code.name)
    return f"{code.shown}#{_digest_of(code_files(code, key))}"


def code_files(code: Code, key: str) -> dict[str, Path]:
    """The files of the code, by name below the folder that is imported from: the file itself, or all of the module's top-level package.

    Raises UserError if there are none.
    """
    if code.is_file:
        require(os.path.isfile(code.place), f"{key}={code.shown}: there is no such file")
        return {os.path.basename(code.place): Path(code.place)}
    top = code.place.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module that runs, such as __main__
        spec = None
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ()) if spec] if spec else []
    origin = Path(spec.origin) if spec and spec.origin and spec.has_location else None
    if not folders and origin is not None:
        return {origin.name: origin}
    files = {f"{top}/{file.relative_to(folder)}": file for folder in folders for file in sorted(folder.rglob("*")) if _is_source(file)}
    remedy = "start where it can be imported, set PYTHONPATH, or give path/to/file.py:name"
    require(bool(files), f"{key}={code.shown}: there is no module {top}; {remedy}")
    return files


def frozen_files(text: str, key: str) -> dict[str, Path]:
    """The files that a frozen copy needs, by name below its folder; none for an installed package, which stays where it is."""
    code = parse(text, key)
    files = code_files(code, key)
    if code.is_file:
        return {f"{FROZEN}/{code.digest}/{name}": path for name, path in files.items()}
    installed = [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib")]
    first = next(iter(files.values())).resolve()
    return {} if any(first.is_relative_to(folder) for folder in installed) else files


def load(text: str, key: str) -> Any:
    """The object that pinned code names. Runs the code.

    Raises UserError, in one line, if the code has changed since it was pinned, cannot be imported, or has no such object.
    """
    code = parse(text, key)
    module = _load_file(code, key) if code.is_file else _load_module(code, key)
    found = getattr(module, code.name, None)
    names = [name for name in vars(module) if not name.startswith("_")]
    require(found is not None, f"{key}={code.shown}: it defines no {code.name}; it defines {', '.join(names) or 'nothing'}")
    return found


@contextmanager
def guarded(text: str, key: str, what: str = "fails") -> Iterator[None]:
    """Within, an exception of the user's code becomes a UserError of one line that names the code and the line in it."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        code = parse(text, key)
        kind = type(error).__name__
        said = first_line(error, 160)
        message = said if said == kind else f"{kind}: {said}"
        raise UserError(f"{key}={code.shown} {what}{_line_in(error, code)} ({message}); correct it there") from error


def _line_in(error: BaseException, code: Code) -> str:
    """` at line N` of the innermost frame, or line of a syntax error, in the code's own file; else of the innermost frame, with its file."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f" at line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not Path(frame.filename).is_relative_to(PACKAGE)]
    own = [frame for frame in frames if os.path.basename(frame.filename) == os.path.basename(code.place)] if code.is_file else frames
    return f" at line {own[-1].lineno}{'' if code.is_file else f' of {own[-1].filename}'}" if own else ""


def _is_source(file: Path) -> bool:
    return file.is_file() and "__pycache__" not in file.parts


def _digest_of(files: dict[str, Path]) -> str:
    """Of one file its sha256; of several that of their names and contents. Shortened."""
    if len(files) == 1:
        return digest(next(iter(files.values())))[:DIGEST_LENGTH]
    lines = "".join(f"{name}\0{digest(path)}\n" for name, path in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:DIGEST_LENGTH]


def _refuse_change(code: Code, now: str, key: str) -> None:
    require(
        code.digest in ("", now), f"{key}={code.shown} has changed since the run was started; put it back, or give {key}= for a new run"
    )


def _load_file(code: Code, key: str) -> ModuleType:
    frozen = PACKAGE.parent / FROZEN / code.digest / os.path.basename(code.place)
    path = frozen if code.digest and frozen.is_file() else Path(code.place)
    require(path.is_file(), f"{key}={code.shown}: there is no such file")
    content = path.read_bytes()
    now = hashlib.sha256(content).hexdigest()[:DIGEST_LENGTH]
    _refuse_change(code, now, key)
    return _run_file(str(path), content, f"user_code_{path.stem}_{now}", code, key)


@cache
def _run_file(path: str, content: bytes, name: str, code: Code, key: str) -> ModuleType:
    """A module of these bytes. No compiled copy is kept or read: it could be that of an older version of the file."""
    module = ModuleType(name)
    module.__file__ = path
    sys.modules[name] = module  # dataclasses look there
    with guarded(code.shown, key, "cannot be imported:"):
        exec(compile(content, path, "exec"), vars(module))
    return module


def _load_module(code: Code, key: str) -> ModuleType:
    _refuse_change(code, _digest_of(code_files(code, key)), key)
    with guarded(code.shown, key, "cannot be imported:"):
        return importlib.import_module(code.place)
