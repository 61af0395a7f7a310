"""The report and the notebooks, on recorded real runs of the embedded model."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest

from mth.analysis.needs import need
from mth.analysis.page import report
from mth.analysis.rates import best_rates, selection_score
from mth.analysis.settings import read_settings, read_table
from mth.analysis.sources import read_folder
from mth.config.cells import cells_of
from mth.config.identity import identity
from mth.foundations.errors import UserError
from tests import recorded

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
FIGURES = ("masks", "sparsity", "structured", "learning_rates", "spectrum", "theory")
METRIC = "eval/arithmetic/pass_at_1"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return recorded.unpack(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def made(runs):
    return report([str(runs)], None, None, "pass_at_1", False).parent


def finals(percent, family="random"):
    """Last pass@1 by mask seed of the recorded runs at the learning rate of the embedded model's table."""
    rate = {0: 1e-4, 99: 5e-3, 99.9: 3e-2}[percent]
    found = {}
    for data in json.loads(recorded.FILE.read_text()).values():
        config = data["config"]
        if (config["sparsity"]["percent"], config["lr"]["value"], config["mask"]["family"]) == (percent, rate, family):
            found[config["mask_seed"]] = [metrics[METRIC] for _, metrics in data["journal"] if METRIC in metrics][-1]
    return found


def test_every_figure_and_table_is_there_in_every_format(made):
    for name in FIGURES:
        for suffix in ("png", "svg", "csv", "md"):
            assert (made / f"{name}.{suffix}").stat().st_size > 50, name
    for name in ("overlap", "memory"):
        assert len(pd.read_csv(made / f"{name}.csv"))


def test_the_page_is_self_contained_and_says_what_was_run(made, runs):
    page = (made / "index.html").read_text()
    assert page.count("data:image/png;base64,") == len(FIGURES)
    order = [page.index(text) for text in ("Full training gains", 'id="setting0"', 'id="curves-by-setting"', 'id="runs"', 'id="missing"')]
    assert order == sorted(order)  # the answer, the figures, the runs, and then what is missing or collapsed
    assert page.index("collapsed: mean reward") > order[-1]
    gaps = re.findall(r'<div class="missing">(.*?)</div>', page, re.DOTALL)
    assert len(gaps) == len(set(gaps)) > 0
    for anchor in re.findall(r'href="#([^"]+)"', page):
        assert f'id="{anchor}"' in page, anchor
    assert not re.search(r"(src|href)=\"(https?:|//)", page)
    for run in read_folder(runs).runs:
        assert f"{run.name} ({run.status}, commit {run.commit})" in page
    assert "mask_seed: 2001" in page


def test_figures_1_and_2_are_the_recorded_numbers(made):
    row = pd.read_csv(made / "masks.csv").iloc[0]
    masks, full = np.array(list(finals(99).values())), finals(0)[0]
    assert row["masks"] == masks.size == 20
    assert row["mean"] == pytest.approx(masks.mean(), abs=1e-4)
    assert row["full"] == pytest.approx(full)
    assert row["successes"] == (masks >= full - masks.std(ddof=1)).sum()


def test_figure_3_has_the_recorded_numbers(made):
    table = pd.read_csv(made / "sparsity.csv").set_index("sparsity")
    for percent in (99, 99.9):
        if table.loc[percent, "learning rate"] == {99: 5e-3, 99.9: 3e-2}[percent]:
            assert table.loc[percent, "mean"] == pytest.approx(np.mean(list(finals(percent).values())), abs=1e-4)
    assert {0, 99, 99.9, 99.99} <= set(table.index)
    assert (table["runs"].drop(0) >= 3).all() and (table["std"].drop(0) > 0).all()  # every level has error bars


def test_the_rate_is_chosen_on_training_prompts_only(runs):
    every = [run for run in read_folder(runs).runs if run.config.mask.family == "random"]
    before = best_rates(every)
    rates = {run.config.lr.value for run in every if run.config.sparsity.percent == 99}
    assert len(rates) > 1
    for run in every:
        for entry in run.entries:
            entry.metrics.update({key: 0.0 for key in entry.metrics if key.startswith("eval/")})
    assert best_rates(every) == before  # what is reported has no part in the choice
    level = [run for run in every if run.config.sparsity.percent == 99 and run.config.mask_seed == 0]  # the mask that all rates have
    loser = next(run for run in level if run.config.lr.value != before[99])
    for entry in loser.entries:
        entry.metrics["reward/mean"] = 1.0
    assert selection_score(loser) == 1
    assert best_rates(every)[99] == loser.config.lr.value


def test_the_command_for_what_is_missing_asks_for_exactly_that(runs):
    every = read_folder(runs).runs
    config = next(run.config for run in every if run.config.sparsity.percent == 99)
    structured, sparsity = need("fig5_6_structured", config, every), need("fig3_sparsity", config, every, ("mask_seed", "lr"))
    assert structured.missing == 0
    cells = cells_of(shlex.split(structured.command)[3:])
    assert [identity(cell.config) for cell in cells] == structured.cells
    done = {run.identity for run in every}
    assert sparsity.missing == len(set(sparsity.cells) - done) > 0
    assert "train.steps=30" in sparsity.command
    assert len(need("fig1_masks_1.5b", config, every).runs) == 21
    cell = next(run for run in every if run.identity in structured.cells)
    stopped = [replace(run, status="interrupted") if run is cell else run for run in every]
    assert need("fig5_6_structured", config, stopped).missing == 1  # a run that was stopped is still missing


@pytest.fixture
def few(runs, tmp_path):
    """Full training, one mask, and room for trouble."""
    for name in ("fig5_6/0-s0.0-m0", "fig5_6/5-s99.0-m0"):
        shutil.copytree(runs / name, tmp_path / name)
    return tmp_path


def test_bad_runs_are_named_and_take_nothing_with_them(few, runs, capsys):
    shutil.copytree(runs / "fig5_6/5-s99.0-m0", few / "other")
    text = (few / "other/config.yaml").read_text()
    (few / "other/config.yaml").write_text(
        text.replace("name: tiny", "name: qwen2.5-0.5b").replace("path: null", "path: Qwen/Qwen2.5-0.5B", 1)
    )
    for name, file, content in (
        ("damaged", "config.yaml", "model: ["),
        ("strange", "journal.jsonl", '{"step": "many", "time": 0, "metrics": {}}\n'),
        ("words", "journal.jsonl", '{"step": 1, "time": 0, "metrics": {"reward/mean": "high"}}\n'),
        ("nothing", "journal.jsonl", '{"step": 1, "time": 0, "metrics": null}\n'),
        ("empty", "journal.jsonl", ""),
    ):
        shutil.copytree(runs / "fig1/22-s99.0-m20", few / name)
        (few / name / file).write_text(content)
    shutil.copytree(runs / "fig1/23-s99.0-m30", few / "died")
    (few / "died/summary.json").write_text(json.dumps({"status": "failed", "reason": "out of memory"}))
    page = report([str(few)], None, None, "pass_at_1", False)
    noted = capsys.readouterr().err
    assert "Runs of 2 models (qwen2.5-0.5b, tiny)" in noted
    assert all(re.search(rf"{name}: cannot be read", noted) for name in ("damaged", "strange", "words", "nothing"))
    assert "died: failed: out of memory" in noted
    assert noted.count("Traceback") == 0
    sections = page.read_text()
    assert "tiny on arithmetic" in sections and "qwen2.5-0.5b on arithmetic" in sections
    row = pd.read_csv(page.parent / "1_masks.csv").iloc[0]
    assert row["masks"] == 1  # the failed and the empty run are in no mean


def test_what_cannot_be_shown_is_one_line_with_its_command(few, capsys):
    report([str(few)], None, None, "pass_at_1", False)
    noted = capsys.readouterr().err
    assert re.search(
        r"not shown: fig7_lr: no sparsity was run at two learning rates.* python -m mth.train -m experiment=fig7_lr model=tiny", noted
    )
    assert re.search(r"not shown: fig4_spectrum: no run has gradients", noted)
    with pytest.raises(UserError, match="charm: no finished run has it; there is completion_tokens, pass_at_1, reward"):
        report([str(few)], None, None, "charm", False)


def test_runs_of_a_model_given_by_path_are_shown_like_any(few):
    """Such a model has no file in conf/model and no learning rates of its own."""
    for name in ("fig5_6/0-s0.0-m0", "fig5_6/5-s99.0-m0"):
        path = few / name / "config.yaml"
        path.write_text(path.read_text().replace("path: null", "path: some/llama", 1).replace("lr_table: tiny", "lr_table: null"))
    page = report([str(few)], None, None, "pass_at_1", False)
    assert pd.read_csv(page.parent / "masks.csv").iloc[0]["masks"] == 1
    text = page.read_text()
    assert "llama on arithmetic" in text
    assert (
        "experiment=fig1_masks_1.5b model=tiny model.path=some/llama task=arithmetic train.steps=30 train.micro_batch_tokens=16384 lr.value=RATE"
        in text
    )


def test_gradients_of_another_run_are_not_shown_as_this_ones(runs, few, capsys):
    shutil.copytree(runs / "fig4/0-s0.0-m0", few / "fig4")
    assert "spectrum.png" in report([str(few)], None, None, "pass_at_1", False).read_text()
    header = json.loads((few / "fig4/spectrum/collection.json").read_text())
    (few / "fig4/spectrum/collection.json").write_text(json.dumps(header | {"model": "qwen2.5-0.5b"}))
    page = report([str(few)], None, None, "pass_at_1", False).read_text()
    assert "spectrum.png" not in page
    line = "fig4 has gradients of another run: their model is qwen2.5-0.5b, the run&#39;s is tiny"
    assert line in page


def test_exact_gradients_leave_nothing_of_figure_4_missing(made):
    page = (made / "index.html").read_text()
    assert "runs of fig4_spectrum are missing" not in page
    assert pd.read_csv(made / "eigenvalues.csv")["number"].tolist() == list(range(1, 31))
    vectors = pd.read_csv(made / "eigenvectors.csv")
    assert vectors["cumulative share"].is_monotonic_increasing and (vectors["mu"] > 1).all()


def test_collapsed_runs_are_counted_in_every_figure(made):
    table = pd.read_csv(made / "structured.csv").set_index("mask")
    assert table["collapsed"].to_dict()["first layer, whole layer"] == 1
    assert table["collapsed"].sum() == 1


def test_folders_and_mlflow_are_one_collection(few, runs, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    for name in ("fig1/22-s99.0-m20", "fig5_6/5-s99.0-m0"):
        shutil.copytree(runs / name, other / name)
    page = report([str(few), str(other)], None, None, "pass_at_1", False)
    assert page.parent == few / "report"
    assert pd.read_csv(page.parent / "masks.csv").iloc[0]["masks"] == 2  # the mask that both have counts once
    assert "repeats of a run that is shown" in page.read_text()


def test_forgetting_is_the_change_of_the_task_that_was_not_trained(few, tmp_path):
    for journal in few.rglob("journal.jsonl"):
        lines = [json.loads(line) for line in journal.read_text().splitlines()]
        for line in lines:
            if METRIC in line["metrics"]:
                line["metrics"]["eval/alphabet_sort/pass_at_1"] = 0.5 - line["step"] / 1000
        journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
        config = journal.with_name("config.yaml")
        config.write_text(re.sub(r"  tasks:\n  - arithmetic\n", "  tasks:\n  - arithmetic\n  - alphabet_sort\n", config.read_text()))
    made = report([str(few)], tmp_path, None, "pass_at_1", False).parent
    table = pd.read_csv(made / "forgetting.csv").set_index(["accuracy on", "sparsity"])
    assert table["change"].loc["alphabet_sort (not trained)"].tolist() == [-0.03, -0.03]
    assert table.loc[("arithmetic (trained)", 99), "after"] == pytest.approx(finals(99)[0], abs=1e-4)
    assert (made / "forgetting.png").stat().st_size > 50


def test_a_report_is_a_source_that_gives_the_same_report(made, tmp_path, monkeypatch):
    """Its frame, a few files, gives every table and figure again, those of gradients too. It needs neither gradients nor models."""
    for name in ("runs.jsonl", "points.parquet", "gradients.parquet", "shapes.json"):
        shutil.copy(made / name, tmp_path)
    monkeypatch.setattr("mth.models.shapes.model_files", lambda config: pytest.fail("the model was read"))
    again = report([str(tmp_path)], tmp_path / "again", None, "pass_at_1", False).parent
    files = {path.name for path in made.iterdir() if path.suffix in (".csv", ".md", ".png", ".jsonl", ".json")}
    assert files >= {f"{name}.png" for name in FIGURES} | {
        "overlap.csv",
        "memory.csv",
        "eigenvalues.csv",
        "eigenvectors.csv",
        "settings.csv",
    }
    assert {path.name for path in again.iterdir()} >= files
    for name in files:
        assert (again / name).read_bytes() == (made / name).read_bytes(), name
    (tmp_path / "runs.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="is no frame of a report"):
        report([str(tmp_path)], None, None, "pass_at_1", False)


def test_no_finished_run_is_one_line(few):
    for name in ("fig5_6/0-s0.0-m0", "fig5_6/5-s99.0-m0"):
        (few / name / "summary.json").unlink()
    with pytest.raises(UserError, match=r"has no finished run \(2 unfinished\)"):
        report([str(few)], None, None, "pass_at_1", False)


def test_command_line(tmp_path):
    def call(*arguments):
        return subprocess.run([sys.executable, "-m", "mth.report", *arguments], capture_output=True, text=True, cwd=tmp_path)

    assert "--skip-paper-tables" in call("--help").stdout
    for arguments, line in (
        ([str(tmp_path)], "has no runs of mth"),
        (["nothere"], "is no folder with runs of mth, and there is no multirun/mlflow.db"),
    ):
        result = call(*arguments)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert line in result.stderr


def test_a_run_with_a_page_of_its_own_is_linked_and_every_name_is_text(few):
    strange = few / "<img src=x onerror=alert(1)>"
    (few / "fig5_6").rename(strange)
    (strange / "5-s99.0-m0/page.html").write_text("a page")
    page = report([str(few)], None, None, "pass_at_1", False).read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;/0-s0.0-m0" in page
    (link,) = re.findall(r'<td class="run"><a href="([^"]+)">', page)
    assert (few / "report" / unquote(link)).resolve() == (strange / "5-s99.0-m0/page.html").resolve()


@pytest.fixture(scope="module")
def several(runs, tmp_path_factory):
    """The report of a folder that holds two models, each on a task of its own; one has gradients."""
    folder = tmp_path_factory.mktemp("several")
    pair = ("fig5_6/0-s0.0-m0", "fig5_6/5-s99.0-m0")
    for name in (*pair, "fig4/0-s0.0-m0", "fig1/22-s99.0-m20", "fig7b/0-s0.0-m0", "fig7/0-s99.0-m0", "fig7/1-s99.0-m0"):
        shutil.copytree(runs / name, folder / name)
    changes = {"name: tiny": "name: qwen2.5-0.5b", "path: null": "path: Qwen/Qwen2.5-0.5B"}
    changes |= {"name: arithmetic": "name: alphabet_sort", "- arithmetic": "- alphabet_sort"}
    for run in pair:
        path = shutil.copytree(runs / run, folder / "other" / run)
        text = (path / "config.yaml").read_text()
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new, 1)
        (path / "config.yaml").write_text(text)
        (path / "journal.jsonl").write_text((path / "journal.jsonl").read_text().replace("eval/arithmetic", "eval/alphabet_sort"))
    return report([str(folder)], None, None, "pass_at_1", False).parent


def test_a_folder_of_several_settings_has_an_answer_and_tables_for_each(several):
    page = (several / "index.html").read_text()
    titles = read_settings(several)["setting"].unique()
    assert len(titles) == 2
    for title in titles:
        assert page.count(title) >= 3  # its answers, its section, its entry in the contents
    assert page.count("The one random mask at 99") >= 2
    table = read_table(several, "sparsity")
    assert list(table["setting"].unique()) == list(titles)
    assert set(table["task"]) == {"arithmetic", "alphabet_sort"}
    with pytest.raises(UserError, match=r"has no charm\.csv"):
        read_table(several, "charm")
    with pytest.raises(UserError, match=r"has no settings\.csv"):
        read_table(several.parent, "masks")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_on_a_report_of_several_settings(path, several, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("MTH_REPORT", str(several))
    book = nbformat.read(path, as_version=4)
    NotebookClient(book, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any("text/html" in output.get("data", {}) for output in outputs)


def test_notebooks_are_kept_without_outputs():
    assert {path.stem for path in NOTEBOOKS} == {"masks", "sparsity", "overlap", "spectrum", "memory", "learning_rates"}
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text())["cells"]:
            assert not cell.get("outputs") and cell.get("execution_count") is None, path
