"""Atomic files and the first line of an error."""

import pytest

from mth.foundations.errors import UserError, first_line, require
from mth.foundations.files import atomic, copy_file, read_json, write_json, write_text


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
