"""The page of one run: what it holds, what it says of runs that are at work, old or damaged, and that nothing in it is obeyed."""

import html
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mth.analysis import run_page as module
from mth.analysis.run_page import run_page, spread
from mth.foundations.errors import UserError
from mth.runs.folder import RunFolder
from mth.runs.lock import lock_folder
from mth.runs.samples import sample_file
from tests.pages import SAMPLE, add_samples, eval_samples, make_run

OLD_RUN = Path(__file__).parents[1] / "data" / "run_9095324"


@pytest.fixture
def run(tmp_path):
    folder = make_run(tmp_path / "run", mask_seed=3)
    trained = replace(SAMPLE, step=3, kind="train", uid="t1", advantage=1.5)
    add_samples(folder, [*eval_samples(0, 0.0, 1.0), *eval_samples(6, 1.0, 1.0), trained])
    return folder


def text_of(path):
    return run_page(path).read_text()


def data_of(text):
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text)[1])


def notes(text):
    return [html.unescape(line) for line in re.findall(r'<p class="note">(.*?)</p>', text)]


def settings(text):
    return {row[0]: row[1:] for row in re.findall(r"<tr><td><code>(.*?)</code></td><td>(.*?)</td><td class=\"muted\">(.*?)</td>", text)}


def test_every_metric_of_the_journal_has_a_curve(run):
    data = data_of(text_of(run))
    assert [panel["title"] for panel in data["panels"]] == [
        "pass@1 on evaluation prompts",
        "Reward",
        "Entropy in nats per token",
        "Seconds per phase",
    ]
    axis, values = data["metrics"]["eval/arithmetic/pass_at_1"]
    assert (data["axes"][axis], values) == ([0, 2, 4, 6], [0.0, 0.2, 0.4, 0.6])
    lines = [line for panel in data["panels"] + data["more"] for line in panel["series"]]
    assert {line["metric"] for line in lines} | {line["error"] for line in lines if line["error"]} == set(data["metrics"])
    assert lines[0]["error"] == "eval/arithmetic/pass_at_1_error"
    assert [panel["title"] for panel in data["panels"] if panel["stacked"]] == ["Seconds per phase"]


def test_results_are_at_the_top_with_their_errors(run):
    text = text_of(run)
    assert "<dd>0.600 ± 0.061<small>+0.600 ± 0.289 from 0.000</small>" in text
    assert "<dd>17,881<small>of 1,791,104</small>" in text
    assert not notes(text)


def test_settings_are_those_that_one_has_to_give(run):
    found = settings(text_of(run))
    assert found["mask_seed"] == ("3", "0") and found["task.name"] == ("arithmetic", "alphabet_sort")
    assert not {"eval.tasks", "eval.max_tokens", "lr.value", "run_dir", "model.name"} & set(found)  # they follow, or are the defaults
    config = RunFolder(run).config_file
    config.write_text(config.read_text().replace("value: 0.005", "value: 0.02"))
    assert settings(text_of(run))["lr.value"] == ("0.02", "null")


def test_samples_of_all_steps_are_in_the_page_each_prompt_once(run):
    data = data_of(text_of(run))
    assert sorted(data["prompts"]) == ["question 1", "question 2"]
    assert [(one["step"], one["kind"], one["uid"], one["turns"][0]) for one in data["samples"]][:2] == [
        (0, "eval", "p1", "answer 0.1"),
        (0, "eval", "p2", "answer 0.2"),
    ]
    assert [one["advantage"] for one in data["samples"]] == [None, None, 1.5, None, None]


def test_what_does_not_fit_is_named_and_the_ends_are_kept(run, monkeypatch):
    add_samples(run, [one for step in range(1, 6) for one in eval_samples(step, 0.0, 0.0)])
    monkeypatch.setattr(module, "PAGE_MIB", 2000 / 2**20)
    text = text_of(run)
    steps = {one["step"] for one in data_of(text)["samples"]}
    assert {0, 6} <= steps and len(steps) < 7
    assert notes(text) == [f"Samples of {7 - len(steps)} of 7 steps are left out of this page; see python -m mth.samples {run} --step N"]
    assert spread([0, 1, 2, 3, 4, 5, 6]) == [6, 0, 3, 1, 4, 2, 5] and spread([5]) == [5]


WILD = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)><!-- &lt; \u2028 \u202e"


def test_nothing_that_was_written_ends_an_element(run):
    """In the browser: tests/ui/test_run_page_ui.py."""
    add_samples(run, [replace(SAMPLE, step=4, uid=WILD, task=WILD, prompt=WILD, turns=[WILD], truth=[WILD], scores={WILD: 1.0})])
    summary = RunFolder(run).summary()
    RunFolder(run).write_summary(replace(summary, status="failed", reason=WILD, label=WILD))
    text = text_of(run)
    assert "<img" not in text and "<!--" not in text
    assert text.count("<script") == text.count("</script>") == 2
    (wild,) = (one for one in data_of(text)["samples"] if one["step"] == 4)
    assert wild["turns"] == [WILD.replace("\u2028", "\\u2028").replace("\u202e", "\\u202e")]


def test_states_that_are_no_end_are_one_line(run, tmp_path):
    with lock_folder(run):
        assert notes(text_of(run))[0].startswith("This run is at work: step 6 of 6 at ")
    killed = make_run(tmp_path / "killed", steps=3, status=None)
    assert notes(text_of(killed))[0] == "This run has ended without a word at step 3 of 6: it was killed, or its machine was lost."
    failed = make_run(tmp_path / "failed", steps=2, status="failed")
    assert notes(text_of(failed))[0] == "This run has failed at step 2 of 6: it went wrong"
    RunFolder(killed).journal_file.unlink()
    text = text_of(killed)
    assert "The journal holds no step yet." in notes(text) and data_of(text)["panels"] == []


def test_a_run_of_an_older_version(tmp_path):
    shutil.copytree(OLD_RUN, tmp_path / "run")
    text = text_of(tmp_path / "run")
    assert len(notes(text)) == 2 and "This run has no samples" in notes(text)[1]
    assert data_of(text)["metrics"]["eval/arithmetic/pass_at_1"][1] == [0.75, 0.75, 0.75]
    assert settings(text)["sparsity.percent"] == ("99.9", "99")


def test_what_is_damaged_is_named_and_the_rest_is_shown(run):
    sample_file(RunFolder(run).samples, 6).write_bytes(b"PAR1 cut short")
    journal = RunFolder(run).journal_file
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([*lines[:3], "{damaged", *lines[4:], '{"step": 7, "time": 0, "metrics": {"loss": "bad"}}']) + "\n")
    config = RunFolder(run).config_file
    config.write_text(config.read_text() + "of_tomorrow: 1\n")
    text = text_of(run)
    assert [re.sub(r" \(.*", "", note) for note in notes(text)] == [
        "config.yaml: stored configuration does not fit this version of mth: Key 'of_tomorrow' not in 'Config'",
        "journal.jsonl: lines 4, 8 are damaged and left out",
        f"samples file {sample_file(RunFolder(run).samples, 6)} is damaged",
    ]
    data = data_of(text)
    assert {one["step"] for one in data["samples"]} == {0, 3}
    assert data["metrics"]["reward/mean"][1] == [0.05, 0.1, 0.2, 0.25, 0.3]
    assert settings(text)["of_tomorrow"] == ("1", "")
    config.write_text(config.read_text().replace("stop: ''", 'stop: "\\n"'))
    assert settings(text_of(run))["task.stop"] == ("\\n", "")
    config.write_text("a: [")
    assert "config.yaml is damaged" in notes(text_of(run))[0]


def test_a_number_that_json_lacks_leaves_a_gap(run):
    journal = RunFolder(run).journal_file
    journal.write_text(journal.read_text().replace('"reward/mean": 0.1,', '"reward/mean": NaN,'))
    assert data_of(text_of(run))["metrics"]["reward/mean"][1][:3] == [0.05, "NaN", 0.15]


def test_another_metric_comes_first_and_an_unknown_one_is_refused(run, tmp_path):
    page = run_page(run, tmp_path / "out", "reward")
    assert page == tmp_path / "out" / "index.html"
    assert data_of(page.read_text())["panels"][0]["title"] == "reward on evaluation prompts"
    with pytest.raises(UserError, match="--metric speed: no evaluation has it; there is pass_at_1"):
        run_page(run, None, "speed")


def test_the_command_makes_a_page_of_one_run_without_torch(run):
    code = "import sys; sys.argv = ['mth.report', sys.argv[1]]; from mth.report import main; main(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (done.stdout, done.stderr) == (f"page: {run / 'page.html'}\nFalse\n", "")
