"""Local data: what is a path, and what is wrong with bad files."""

import json

import pandas as pd
import pytest

from mth.config.schema import TaskConfig
from mth.foundations.errors import UserError
from mth.tasks import build_task
from mth.tasks.data import looks_local, read_rows
from tests.tasks.rows import write_rows


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: str(p / "missing.jsonl"), "does not exist"),
        (lambda p: str(p), "has no train.jsonl"),
        (
            lambda p: write_rows(p / "train.jsonl", [{"prompt": "x"}]) or str(p / "train.jsonl"),
            "column question, answer is missing; found prompt",
        ),
        (lambda p: (p / "bad.jsonl").write_text("{not json\n") and str(p / "bad.jsonl"), "cannot be read"),
        (lambda p: (p / "empty.jsonl").write_text("") or str(p / "empty.jsonl"), "no rows"),
        (lambda p: write_rows(p / "null.jsonl", [{"question": "q", "answer": None}]) or str(p / "null.jsonl"), "row 0"),
        (
            lambda p: (
                (p / "cut.jsonl").write_text('{"question": "q", "answer": "#### 1"}\n{"question": "q2", "ans') and str(p / "cut.jsonl")
            ),
            "line 2 is no JSON",
        ),
        (
            lambda p: (p / "list.jsonl").write_text('{"question": "q", "answer": "#### 1"}\n[1]\n') and str(p / "list.jsonl"),
            "line 2 is no object",
        ),
        (
            lambda p: (p / "u16.jsonl").write_bytes('{"question": "q", "answer": "#### 1"}\n'.encode("utf-16")) and str(p / "u16.jsonl"),
            "is not UTF-8 text",
        ),
        (lambda p: (p / "bad.parquet").write_bytes(b"PAR1 no") and str(p / "bad.parquet"), "cannot be read"),
        (
            lambda p: write_rows(p / "l.jsonl", [{"question": ["q"], "answer": "#### 1"}]) or str(p / "l.jsonl"),
            "row 0: column question is a list",
        ),
        (
            lambda p: write_rows(p / "b.jsonl", [{"question": "q", "answer": True}]) or str(p / "b.jsonl"),
            "row 0: column answer is true or false",
        ),
        (lambda p: write_rows(p / "n.jsonl", [{"question": None, "answer": "#### 1"}]) or str(p / "n.jsonl"), "row 0 has no question"),
        (lambda p: (p / "data.csv").write_text("a\n1\n") and str(p / "data.csv"), "only .jsonl, .json, .parquet files"),
    ],
)
def test_bad_data_is_one_clear_line(tmp_path, make, message):
    with pytest.raises(UserError, match=message) as error:
        build_task(TaskConfig(name="gsm8k", path=make(tmp_path)))
    assert "\n" not in str(error.value)


def test_a_path_is_told_from_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert looks_local("./data") and looks_local("/data") and looks_local("rows.jsonl")
    assert not looks_local("openai/gsm8k")
    (tmp_path / "openai/gsm8k").mkdir(parents=True)
    assert looks_local("openai/gsm8k")


def rows_of(count, name="q"):
    return [{"question": f"{name}{i}", "answer": f"#### {i}"} for i in range(count)]


def questions(path, split="train", subset="main"):
    return [row["question"] for row in read_rows(str(path), split, ("question", "answer"), subset)[0]]


@pytest.mark.parametrize("name", ["[v1]", "v*", "a?b", "{x,y}", "with space", "ümlaut"])
def test_a_path_is_a_path_and_no_pattern(tmp_path, name):
    for folder, label in ((name, "own"), ("v1", "other"), ("vx", "other"), ("axb", "other")):
        (tmp_path / folder).mkdir(exist_ok=True)
        write_rows(tmp_path / folder / "train.jsonl", rows_of(3, label))
    assert questions(tmp_path / name) == questions(tmp_path / name / "train.jsonl") == ["own0", "own1", "own2"]


def write_shards(folder, split, sizes):
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for i, size in enumerate(sizes):
        rows = rows_of(start + size, split)[start:]
        pd.DataFrame(rows).to_parquet(folder / f"{split}-{i:05d}-of-{len(sizes):05d}.parquet")
        start += size


@pytest.mark.parametrize("below", ["", "main"])
def test_a_folder_as_the_hub_stores_it(tmp_path, below):
    """Shards of each split, also in the folder of a configuration."""
    write_shards(tmp_path / below, "train", (3, 3, 3))
    write_shards(tmp_path / below, "test", (2,))
    write_shards(tmp_path / "socratic", "train", (1,))
    assert questions(tmp_path) == [f"train{i}" for i in range(9)]
    assert questions(tmp_path, "test") == ["test0", "test1"]
    assert read_rows(str(tmp_path), "train", (), "main")[1] is True


def test_all_configurations_of_a_folder(tmp_path):
    for subject in ("algebra", "geometry"):
        write_shards(tmp_path / subject, "train", (2,))
    assert len(questions(tmp_path, subset="*")) == 4
    with pytest.raises(UserError, match=r"has no train\.jsonl, train\.parquet or train-\*\.parquet"):
        questions(tmp_path, subset="main")


def test_a_folder_with_test_rows_only_is_not_trained_on(tmp_path):
    write_shards(tmp_path, "test", (5,))
    with pytest.raises(UserError, match=r"has no train\.jsonl"):
        questions(tmp_path)
    alone = tmp_path / "alone"
    alone.mkdir()
    write_rows(alone / "rows.jsonl", rows_of(4))
    assert read_rows(str(alone), "train", (), "main") == (rows_of(4), False)


def test_numbers_are_text_and_missing_cells_are_empty(tmp_path):
    write_rows(
        tmp_path / "rows.jsonl",
        [{"problem": f"What is {i} + 1?", "answer": i + 1} for i in range(4)] + [{"problem": "half?", "answer": 0.5}],
    )
    task = build_task(TaskConfig(name="math", path=str(tmp_path / "rows.jsonl"), holdout=False))
    assert [episode.truth for episode in task.train] == [("1",), ("2",), ("3",), ("4",), ("0.5",)]
    write_rows(tmp_path / "names.jsonl", [{"names": ["Ada Lovelace", None]}])
    with pytest.raises(UserError, match=r"row 0: column names must hold a list of 'First Last' strings"):
        build_task(TaskConfig(name="alphabet_sort", path=str(tmp_path / "names.jsonl")))


def test_a_list_of_rows_and_a_byte_order_mark(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps(rows_of(2)))
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n".join(json.dumps(row).encode() for row in rows_of(2)))
    assert questions(tmp_path / "list.json") == questions(tmp_path / "bom.jsonl") == ["q0", "q1"]
