"""Aggregation: fast, tolerant of everything that goes wrong with runs, and never silent about it."""

import json
import sqlite3
import time
from dataclasses import replace

import numpy as np
import pytest
from omegaconf import OmegaConf

from mth.analysis import sources
from mth.analysis.aggregate import bootstrap_interval, describe, last_value, mean_curve, points, run_table, series, successes, tidy_frame
from mth.analysis.collection import Collection, Run, merged
from mth.analysis.page import report
from mth.analysis.sources import read_folder, read_mlflow
from mth.config.identity import identity
from mth.config.stored import flat, to_plain
from mth.foundations.errors import UserError
from mth.runs.journal import Entry
from mth.runs.summary import Summary
from mth.runs.trackers.tracker import Tracker
from tests.conftest import make_config

KEY = "eval/arithmetic/pass_at_1"


def write_run(folder, values, status="finished", **changes):
    config = make_config(**changes)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(to_plain(config))))
    lines = [json.dumps({"step": step, "time": step, "metrics": {KEY: value}}) + "\n" for step, value in values]
    (folder / "journal.jsonl").write_text("".join(lines))
    if status:
        (folder / "summary.json").write_text(json.dumps({"status": status, "reason": "entropy" if status == "collapsed" else None}))
    return config


def test_a_folder_with_everything_that_goes_wrong(tmp_path):
    write_run(tmp_path / "a", [(0, 0.5), (10, 0.7)], mask_seed=0)
    write_run(tmp_path / "b", [(0, 0.5), (10, 0.1)], "collapsed", mask_seed=10)
    write_run(tmp_path / "c", [(0, 0.5)], "failed", mask_seed=20)
    write_run(tmp_path / "d", [(0, 0.5), (10, 0.6), (10, 0.8)], None, mask_seed=30)
    write_run(tmp_path / "again", [(0, 0.5)], None, mask_seed=0)
    write_run(tmp_path / "code" / "frozen", [(0, 0.9)], mask_seed=99)
    write_run(tmp_path / "damaged", [(0, 0.5)], mask_seed=40)
    (tmp_path / "damaged" / "config.yaml").write_text("model: [")
    (tmp_path / "a" / "journal.jsonl").open("a").write('{"step": 20, "me')
    collection = read_folder(tmp_path)
    table = run_table(collection.runs).set_index("mask_seed")
    assert table["status"].to_dict() == {0: "finished", 10: "collapsed", 20: "failed", 30: "unfinished"}
    assert table.loc[0, "run"] == "a"
    assert collection.repeats == {identity(make_config(mask_seed=0)): ["again"]}
    assert len(collection.problems) == 1 and "damaged" in collection.problems[0]
    assert last_value(next(run for run in collection.runs if run.name == "d"), KEY) == 0.8  # the line written last
    frame = points(collection.runs)
    assert not frame.duplicated(["run", "step", "metric"]).any()


def test_nothing_to_read_is_one_line(tmp_path):
    with pytest.raises(UserError, match="has no runs of mth"):
        read_folder(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        read_folder(tmp_path / "none")
    with pytest.raises(UserError, match="does not exist"):
        read_mlflow("mth", f"sqlite:///{tmp_path}/none.db")
    (tmp_path / "text.db").write_text("this is no database, whatever its name says" * 50)
    with pytest.raises(UserError, match="cannot be read"):
        read_mlflow("mth", f"sqlite:///{tmp_path}/text.db")


def test_mlflow_gives_what_the_journals_give(tmp_path, monkeypatch):
    config = make_config(tracker={"name": "mlflow"}, mask_seed=7, eval={"paths": {"gsm8k": "[v1]: path"}})
    folder = tmp_path / "run"
    folder.mkdir()
    tracker = Tracker(config, folder, tmp_path, -1, {"active_parameters": 5})
    for step in range(3):
        tracker.log(step, {KEY: 0.5 + step / 8, "loss": -step / 4, "entropy": float("nan") if step == 1 else 1.0})
    tracker.close("collapsed", "entropy")
    runs = read_mlflow("mth", f"sqlite:///{tmp_path}/mlflow.db").runs
    assert [(run.identity, run.status, run.reason) for run in runs] == [(identity(config), "collapsed", "entropy")]
    assert [(e.step, e.metrics[KEY], e.metrics["loss"]) for e in runs[0].entries] == [(s, 0.5 + s / 8, -s / 4) for s in range(3)]
    assert [np.isnan(e.metrics["entropy"]) for e in runs[0].entries] == [False, True, False]  # the store keeps a NaN as 0
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(UserError, match="no MLflow experiment other; it has"):
        read_mlflow("other", uri)
    page = report(["mth"], tmp_path / "report", uri, "pass_at_1", False).read_text()
    assert "MLflow experiment mth: 1 collapsed" in page and "entropy" in page and runs[0].name in page
    monkeypatch.setattr(sources, "LOCK_TIMEOUT_S", 0.1)
    with sqlite3.connect(tmp_path / "mlflow.db") as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match=r"cannot be read \(database is locked\)"):
            read_mlflow("mth", uri)


def test_a_run_that_an_earlier_version_sent_is_read_from_its_parameters():
    """Parameters were then all keys, metrics had the journal's names, and a value in brackets is no list."""
    config = make_config(mask_seed=7, eval={"paths": {"gsm8k": "[v1]: path"}, "tasks": ["arithmetic", "gsm8k"]})
    params = {key: str(value) for key, value in flat(to_plain(config)).items() if key != "run_dir"} | {"task": "arithmetic", "lr": "0.005"}
    run = sources._run_of(sources.MlflowRun("old", params, {"mth.status": "finished"}, {1: {"loss": 0.5}}))
    assert (run.identity, run.entries[0].metrics) == (identity(config), {"loss": 0.5})


def run_of(name, values, seed=0):
    config = make_config(mask_seed=seed)
    return Run(name, config, identity(config), "finished", "", "", Summary(), [Entry(s, 0, {KEY: v}) for s, v in values])


def test_runs_of_one_name_stay_two():
    """As in MLflow, where a name tells model, sparsity and seed but not, say, the number of steps."""
    both = merged([Collection("a", [run_of("same", [(0, 0.5)], 1)]), Collection("b", [run_of("same", [(0, 0.6)], 2)])])
    assert len({run.name for run in both.runs}) == 2
    assert points(both.runs).groupby("run", observed=True)["value"].sum().tolist() == [0.5, 0.6]


def test_six_hundred_thousand_points():
    names = [f"metric/{i}" for i in range(30)]
    config = make_config()
    runs = [
        Run(f"r{r}", config, "", "finished", "", "", Summary(), [Entry(s, 0, dict.fromkeys(names, 0.5)) for s in range(100)])
        for r in range(200)
    ]
    start = time.process_time()
    frame = tidy_frame(runs)
    assert len(frame) == 600_000
    assert {"run", "model", "sparsity", "mask_seed", "lr", "step", "metric", "value"} <= set(frame.columns)
    assert frame.groupby("run", observed=True)["value"].count().eq(3000).all()
    assert time.process_time() - start < 60  # takes about a second; a loop over rows would take minutes


def test_means_and_bands_are_over_the_same_runs_at_every_step():
    """The step that only one of them evaluated is left out, as is what a longer run did beyond the shorter."""
    band = mean_curve([run_of("a", [(0, 0.5), (10, 0.7)]), run_of("b", [(0, 0.5), (6, 0.6), (10, 0.9), (20, 1.0)]), run_of("c", [])], KEY)
    assert band.index.tolist() == [0, 10]
    assert band["mean"].tolist() == pytest.approx([0.5, 0.8])
    assert band["count"].tolist() == [2, 2]
    assert band["std"].tolist()[1] == pytest.approx(np.std([0.7, 0.9], ddof=1))
    assert mean_curve([run_of("c", [])], KEY).empty


def test_a_run_that_its_collapse_ended_keeps_its_last_value_in_the_mean():
    """Or the mean would rise when the worst run stops."""
    good = [run_of(name, [(0, 0.5), (10, 0.7), (20, value), (30, value)]) for name, value in (("a", 0.8), ("b", 1.0))]
    early = replace(run_of("c", [(0, 0.5), (10, 0.3), (17, 0.0)]), status="collapsed")
    for runs in ([*good, early], [early, *good]):
        band = mean_curve(runs, KEY)
        assert band.index.tolist() == [0, 10, 20, 30]
        assert band["mean"].tolist() == pytest.approx([0.5, 1.7 / 3, 0.6, 0.6])
        assert band["std"].tolist()[2:] == pytest.approx([np.std([0.8, 1.0, 0.0], ddof=1)] * 2)
        assert band["count"].tolist() == [3] * 4
    earlier = replace(run_of("d", [(0, 0.5), (5, 0.1)]), status="collapsed")
    band = mean_curve([early, earlier], KEY)
    assert (band.index.tolist(), band["mean"].tolist()) == ([0, 10, 17], pytest.approx([0.5, 0.2, 0.05]))
    unfinished = mean_curve([*good, replace(early, status="failed")], KEY)
    assert unfinished.index.tolist() == [0, 10]


def test_success_is_full_training_minus_one_std():
    values = [0.8, 0.9, 0.7, 0.4]
    hits, count, threshold = successes(values, 0.85)
    assert threshold == pytest.approx(0.85 - np.std(values, ddof=1))
    assert (hits, count) == (3, 4)
    assert successes([0.6, 0.8], 0.85) == (1, 2, pytest.approx(0.85 - np.std([0.6, 0.8], ddof=1)))  # two masks have a std, one has none
    assert successes([0.8], 0.85) == (0, 1, 0.85)
    assert successes([0.9, float("nan")], 0.85)[:2] == (1, 2)  # a run without the value is no success, and counts


def test_bootstrap_interval_covers_the_mean_about_as_often_as_it_says():
    random = np.random.default_rng(1)
    covered = [low <= 0 <= high for low, high in (bootstrap_interval(random.normal(size=20)) for _ in range(200))]
    assert 0.86 < np.mean(covered) <= 0.99
    assert bootstrap_interval([1.0, 2.0, 3.0]) == bootstrap_interval([1.0, 2.0, 3.0])
    assert np.isnan(bootstrap_interval([1.0])).all()


def test_what_a_row_of_numbers_says():
    found = describe([0.2, 0.4, 0.9, float("nan")])
    assert (found["mean"], found["std"], found["runs"]) == (pytest.approx(0.5), pytest.approx(np.std([0.2, 0.4, 0.9], ddof=1)), 3)
    assert (found["low"], found["high"]) == bootstrap_interval([0.2, 0.4, 0.9])
    assert 0.2 <= found["low"] < 0.5 < found["high"] <= 0.9
    single = describe([0.5])
    assert single["mean"] == 0.5 and np.isnan([single["std"], single["low"], single["high"]]).all()
    nothing = describe([float("nan")])
    assert np.isnan(nothing["mean"]) and nothing["runs"] == 0


def test_a_narrower_interval_for_a_lower_level():
    values = np.random.default_rng(0).normal(size=30).tolist()
    (low, high), (inner_low, inner_high) = bootstrap_interval(values), bootstrap_interval(values, level=0.5)
    assert low < inner_low < np.mean(values) < inner_high < high
    assert (inner_low + inner_high) / 2 == pytest.approx(np.mean(values), abs=0.03)
    assert (low + high) / 2 == pytest.approx(np.mean(values), abs=0.05)


def test_a_curve_is_in_the_order_of_its_steps():
    """Whatever the order in which a store gives them."""
    run = run_of("a", [(20, 1.0), (0, 0.5), (10, 0.7)])
    assert series(run, KEY).index.tolist() == mean_curve([run], KEY).index.tolist() == [0, 10, 20]
    assert last_value(run, KEY) == 1.0
    assert np.isnan(last_value(run, "eval/arithmetic/none"))
