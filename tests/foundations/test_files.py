"""Atomic files and the first line of an error."""

import json
import math
import os
from pathlib import Path

import pytest

from mth.foundations.errors import UserError, first_line, require
from mth.foundations.files import atomic, copy_file, from_json, read_json, temporary_path, to_json, write_json, write_text


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "new/a.txt"
    write_text(path, "first")
    with pytest.raises(TypeError), atomic(path) as temporary:
        temporary.write_bytes("no bytes")
    assert path.read_text() == "first"
    assert [other.name for other in path.parent.iterdir()] == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o644
    copy_file(path, tmp_path / "copy.txt")
    assert (tmp_path / "copy.txt").read_text() == "first"


def test_json_that_is_missing_or_no_object_reads_as_empty(tmp_path):
    path = tmp_path / "a.json"
    assert read_json(path) == {}
    write_json(path, {"a": [1, None]})
    assert read_json(path) == {"a": [1, None]}
    for text in ("{", "[1]", ""):
        path.write_text(text)
        assert read_json(path) == {}


def test_an_error_becomes_one_line():
    assert first_line(ValueError("\n first\nsecond")) == "first"
    assert first_line(ValueError("a long message"), 6) == "a long"
    assert first_line(ValueError("")) == "ValueError"
    with pytest.raises(UserError, match="lower it"):
        require(False, "lower it")
    require(True, "never said")


def test_json_has_no_bare_nan_and_reads_back(tmp_path):
    """JSON knows neither NaN nor infinities; they are written as texts. A bare NaN of an earlier version is read."""
    data = {"a": math.nan, "b": [math.inf, -math.inf, 1.5, True, None], "c": {"d": (math.nan,)}, "e": "nan"}
    for text in (to_json(data), to_json(data, indent=1)):
        strict = json.loads(text, parse_constant=lambda name: pytest.fail(f"bare {name}"))
        assert strict == {"a": "NaN", "b": ["Infinity", "-Infinity", 1.5, True, None], "c": {"d": ["NaN"]}, "e": "nan"}
        back = from_json(text)
        assert math.isnan(back["a"]) and math.isnan(back["c"]["d"][0])
        assert (back["b"], back["e"]) == (data["b"], "nan")
    write_json(tmp_path / "a.json", data)
    json.loads((tmp_path / "a.json").read_text(), parse_constant=lambda name: pytest.fail(f"bare {name}"))
    assert read_json(tmp_path / "a.json")["b"] == data["b"]
    assert math.isnan(from_json('{"a": NaN}')["a"])


def test_a_file_is_on_disk_before_it_gets_its_name_and_the_name_after(tmp_path, monkeypatch):
    """After a power cut a name must not stand for a file without its bytes."""
    done = []

    def recorded(name, call):
        def record(first, *others):
            place = Path(os.readlink(f"/proc/self/fd/{first}")) if isinstance(first, int) else Path(first)
            done.append((name, place.name, place.stat().st_size if place.is_file() else None))
            return call(first, *others)

        return record

    monkeypatch.setattr(os, "fsync", recorded("fsync", os.fsync))
    monkeypatch.setattr(os, "replace", recorded("replace", os.replace))
    write_text(tmp_path / "a.txt", "whole")
    temporary = temporary_path(tmp_path / "a.txt").name
    assert done == [("fsync", temporary, 5), ("replace", temporary, 5), ("fsync", tmp_path.name, None)]
