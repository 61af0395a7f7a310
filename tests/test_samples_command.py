"""python -m mth.samples: what is shown, in which order, escaped, side by side, as JSON, and in one line where nothing can be."""

import json
import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mth.grid.record import Grid, GridCell
from mth.runs.folder import RunFolder
from mth.runs.samples import Sample, sample_file
from mth.samples import main, visible
from tests.conftest import begin, claim, make_config
from tests.pages import add_samples, output_of

BASE = Sample(
    0, "eval", "arithmetic", "p1", 0, "What is 1+1?", ["3<|im_end|>"], "stopped", 2, 0.0, {"reward": 0.0, "strict": 0.0}, None, -0.5, ["2"]
)


def replies(step, *rewards):
    """One reply to each of the prompts p1, p2, ..., with these rewards."""
    return [
        replace(
            BASE, step=step, uid=f"p{i}", prompt=f"question {i}", turns=[f"answer {step}.{i}"], reward=reward, scores={"reward": reward}
        )
        for i, reward in enumerate(rewards, 1)
    ]


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    claim(folder, make_config())
    trained = replace(BASE, step=2, kind="train", uid="t1", prompt="to train", turns=["trained"], reward=0.5, advantage=1.25)
    other = replace(BASE, step=2, task="names", uid="n1", prompt="other task", turns=["other"], reward=0.25, stop="cut")
    add_samples(folder, [*replies(0, 0.0, 1.0, 0.5), *replies(2, 1.0, 0.5, 0.5), trained, other])
    return folder


@pytest.fixture
def said(monkeypatch, capsys):
    """Runs the command; returns what it printed, and for a failure what it said on stderr."""

    def call(*arguments, status=0):
        output = output_of(main, ["mth.samples", *arguments], monkeypatch, capsys, status)
        return output.err if status else output.out

    return call


def uids(text):
    return [(one["step"], one["uid"]) for one in json.loads(text)]


def test_newest_first_and_no_more_than_asked_for(run, said):
    assert uids(said(run, "--json")) == [(2, "p1"), (2, "p2"), (2, "p3"), (2, "t1"), (2, "n1"), (0, "p1"), (0, "p2"), (0, "p3")]
    assert uids(said(run, "--json", "--limit", 2)) == [(2, "p1"), (2, "p2")]
    add_samples(run, replies(4, *[1.0] * 20))
    assert len(uids(said(run, "--json"))) == 10
    assert len(uids(said(run, "--json", "--limit", 0))) == 28


def test_conditions(run, said):
    assert uids(said(run, "--json", "--step", 0)) == [(0, "p1"), (0, "p2"), (0, "p3")]
    assert uids(said(run, "--json", "--kind", "train")) == [(2, "t1")]
    assert uids(said(run, "--json", "--task", "names")) == [(2, "n1")]
    assert uids(said(run, "--json", "--grep", "answer 0.2")) == [(0, "p2")]
    assert uids(said(run, "--json", "--grep", "question 1", "--kind", "eval")) == [(2, "p1"), (0, "p1")]


def test_best_and_worst(run, said):
    assert uids(said(run, "--json", "--best", "--limit", 3)) == [(2, "p1"), (0, "p2"), (2, "p2")]
    assert uids(said(run, "--json", "--worst", "--limit", 2)) == [(0, "p1"), (2, "n1")]
    assert uids(said(run, "--json", "--worst", "--limit", 0))[-1] == (0, "p2")


def test_a_sample_as_text(run, said):
    text = said(run, "--kind", "train")
    assert text == (
        "step 2 train arithmetic t1 reply 0 reward 0.500 stopped 2 tokens, strict 0, advantage +1.250, logprob -0.500\n"
        "prompt:\n  to train\nreply:\n  trained\ntruth:\n  2\n\n"
    )
    assert "reward 0.250 cut" in said(run, "--task", "names")
    many = replace(BASE, step=9, turns=["one", "user says", "two"])
    add_samples(run, [many])
    assert "reply:\n  one\nuser:\n  user says\nreply:\n  two\n" in said(run, "--step", 9)


def test_changed_shows_first_and_last_side_by_side(run, said):
    found = json.loads(said(run, "--changed", "--json"))
    assert [(row["uid"], row["change"]) for row in found] == [("p1", 1.0), ("p2", -0.5), ("p3", 0.0)]
    assert [(one["step"], one["turns"]) for one in found[0]["replies"]] == [(0, ["answer 0.1"]), (2, ["answer 2.1"])]
    assert [row["uid"] for row in json.loads(said(run, "--changed", "--json", "--worst"))] == ["p2", "p3", "p1"]
    text = said(run, "--changed", "--limit", 1)
    assert any("answer 0.1" in line and "answer 2.1" in line for line in text.splitlines())
    assert any("step 0" in line and "step 2" in line for line in text.splitlines())
    assert "question 2" not in text
    add_samples(run, replies(4, 0.0, 0.0, 0.0))
    assert [one["step"] for one in json.loads(said(run, "--changed", "--json"))[0]["replies"]] == [0, 4]
    assert [one["step"] for one in json.loads(said(run, "--changed", "--json", "--step", 2))[0]["replies"]] == [0, 2]


def test_a_training_step_after_the_last_evaluation_is_not_compared(run, said):
    add_samples(run, [replace(BASE, step=3, kind="train", uid="p1")])
    assert json.loads(said(run, "--changed", "--json"))[0]["replies"][-1]["step"] == 2


def make_grid(folder, masks):
    cells = [GridCell(name, folder / name, [], "x", {}, "new", 3, ["arithmetic"]) for name in masks]
    folder.mkdir()
    Grid(folder, folder.parent, folder / "code", {}, "command", cells).write()
    for index, name in enumerate(masks):
        claim(folder / name, make_config(mask_seed=index))
        add_samples(
            folder / name, [*replies(0, 0.0, 0.0), *(replace(one, turns=[f"by {name}"]) for one in replies(2 + index, index / 2, 0.25))]
        )
    return folder


@pytest.mark.parametrize("masks", [["0-m0", "1-m1"], ["0-m0", "1-m1", "2-m2"]])
def test_a_grid_shows_the_same_prompt_under_several_masks(tmp_path, said, masks):
    grid = make_grid(tmp_path / "grid", masks)
    found = json.loads(said(grid, "--changed", "--json"))
    assert [row["uid"] for row in found] == ["p1", "p2"]
    assert [(one["run"], one["step"], one["turns"]) for one in found[0]["replies"]] == [
        (name, 2 + index, [f"by {name}"]) for index, name in enumerate(masks)
    ]
    text = said(grid, "--changed", "--limit", 1)
    assert all(f"by {name}" in text and f"{name} step" in text for name in masks) and "question 2" not in text
    together = json.loads(said(grid, "--json", "--step", 0))
    assert [(one["run"], one["uid"]) for one in together] == [(name, uid) for uid in ("p1", "p2") for name in masks]
    assert json.loads(said(grid / masks[0], "--changed", "--json"))[0]["replies"][0]["step"] == 0


def test_what_a_model_wrote_is_shown_and_not_obeyed(run, said):
    wild = "[bold red]no[/bold red] [/] :smile: \x1b[31mred\x07 \r\u202eturned\u200b\t<|im_end|>\ntruth:\n  7"
    add_samples(run, [replace(BASE, step=9, turns=[wild], prompt="[link=x]y[/link]", uid="[u]\x1b")])
    text = said(run, "--step", 9)
    assert "[bold red]no[/bold red] [/] :smile: \\x1b[31mred\\x07 \\r\\u202eturned\\u200b\\t<|im_end|>\n" in text
    assert "[link=x]y[/link]" in text and "[u]\\x1b" in text
    assert not {"\x1b", "\x07", "\r", "\u202e", "\u200b", "\t"} & set(text)
    assert "\ntruth:\n  7" not in text and "\n  truth:\n    7\n" in text  # a reply cannot pass for another part
    assert json.loads(said(run, "--step", 9, "--json"))[0]["turns"] == [wild]
    assert visible("a\nb ü 漢 \u2028") == "a\nb ü 漢 \\u2028"


def test_long_lines_stay_whole_in_a_pipe(run, said):
    add_samples(run, [replace(BASE, step=9, turns=["word " * 200 + "end"])])
    assert f"  {'word ' * 200}end\n" in said(run, "--step", 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", 7], "no samples of step 7; there are 0, 2"),
        (["--task", "chess"], "no sample fits '--task chess'"),
        (["--grep", "xyzzy"], "no sample fits '--grep xyzzy'"),
        (["--step", 0, "--kind", "train"], "no sample fits '--step 0 --kind train'"),
        (["--changed", "--kind", "train"], "--changed compares evaluations"),
        (["--changed", "--step", 7], "no samples of an evaluation at step 7"),
        (["--changed", "--step", 0], "samples of one evaluation only (step 0)"),
        (["--limit", -1], "--limit -1 must be at least 0"),
    ],
)
def test_what_is_not_there_is_one_line(run, said, arguments, message):
    assert message in said(run, *arguments, status=2)


def test_runs_without_samples_and_damaged_files_are_one_line(run, said, tmp_path):
    assert "does not exist" in said(tmp_path / "nowhere", status=2)
    assert "is not the folder of a run or of a grid" in said(tmp_path, status=2)
    claim(tmp_path / "old", make_config())
    assert "has no samples" in said(tmp_path / "old", status=2)
    sample_file(RunFolder(run).samples, 2).write_bytes(b"PAR1 cut short")
    assert "step_000002.parquet is damaged" in said(run, status=2)
    assert "step_000002.parquet is damaged" in said(run, "--changed", status=2)
    assert uids(said(run, "--step", 0, "--json"))  # the others can be read


def at_terminal(run, *arguments, **environment):
    """What the command writes to a terminal, which it takes its keyboard from too."""
    master, slave = pty.openpty()
    process = begin(
        [sys.executable, "-m", "mth.samples", str(run), *arguments],
        stdin=slave,
        stdout=slave,
        stderr=subprocess.STDOUT,
        cwd=Path(__file__).parents[1],
        env={key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "MANPAGER")}
        | {"TERM": "xterm-256color"}
        | environment,
    )
    os.close(slave)
    text = b""
    try:
        while piece := os.read(master, 65536):
            text += piece
    except OSError:  # the end of a terminal
        pass
    assert process.wait(60) == 0, text
    return text.decode()


def test_a_terminal_gets_colours_and_a_pager(run):
    text = at_terminal(run, "--kind", "train", PAGER="sed s/^/paged:/")
    assert "\x1b[1;36mstep 2\x1b[0m" in text and "paged:" in text
    assert "\x1b[1;36m" not in at_terminal(run, "--kind", "train", PAGER="cat", NO_COLOR="1")


def test_a_broken_line_stays_indented_at_a_terminal(run):
    add_samples(run, [replace(BASE, step=9, turns=["word " * 60 + "truth: 7"])])
    text = at_terminal(run, "--step", "9", PAGER="cat", NO_COLOR="1", COLUMNS="40", TERM="xterm")
    reply = re.sub(r"\x1b\[[0-9;]*m", "", text).partition("reply:\r\n")[2].partition("truth:\r\n  2")[0]
    assert reply.count("word") == 60
    assert all(line.startswith("  ") for line in reply.splitlines())
