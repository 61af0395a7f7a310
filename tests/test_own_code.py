"""Code of a user's own: found by file, module and entry point, pinned by its digest, frozen with a grid, never run because a run folder names it."""

import sys
from pathlib import Path

import pytest
import torch

from mth.analysis.needs import need
from mth.config.cells import cells_of
from mth.config.compose import compose
from mth.config.identity import differing_keys, identity
from mth.config.recipes import load_run
from mth.config.schema import AlgorithmConfig, MaskConfig
from mth.config.stored import read_config, to_plain
from mth.config.user_code import entry_points
from mth.evaluate import evaluation
from mth.export import export
from mth.foundations.errors import UserError
from mth.foundations.user_code import load as load_code
from mth.foundations.user_code import pinned
from mth.grid.launch import finish, prepare, start
from mth.grid.preflight import preflight
from mth.runs.search import find_runs
from mth.tickets.masks import sample_mask
from mth.training.losses import policy_loss
from tests.conftest import make_config
from tests.own_code import MASK, RULE, TASK

SMALL = ["train.steps=1", "train.batch_size=8", "rollout.group_size=4", "rollout.max_tokens=8", "eval.samples=4", "tracker=none", "lr=1e-3"]


@pytest.fixture(autouse=True)
def _fresh():
    entry_points.cache_clear()
    yield
    entry_points.cache_clear()


@pytest.fixture
def files(tmp_path, monkeypatch):
    for name, text in (("guess", TASK), ("stride", MASK), ("rule", RULE)):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def composed(*overrides):
    return load_run(compose(list(overrides)), list(overrides))


def test_a_source_alone_is_enough(files):
    config = composed("task.source=guess.py:build", "task.options.most=50", "mask.source=stride.py:STRIDE", "mask.options.every=7")
    assert (config.task.name, config.mask.family, config.task.options, config.mask.options) == (
        "guess",
        "stride",
        {"most": 50},
        {"every": 7},
    )
    assert config.rollout.max_tokens == 96  # of no recipe
    named = composed("task.source=guess.py:build", "task.name=numbers")
    assert (named.task.name, named.eval.tasks, named.label.split("-")[1]) == ("numbers", ["numbers"], "numbers")


def test_the_code_is_part_of_the_identity_and_its_folder_is_not(files):
    (files / "copy").mkdir()
    (files / "copy" / "guess.py").write_text(TASK)
    here, there = (composed(f"task.source={folder}guess.py:build") for folder in ("", "copy/"))
    assert identity(here) == identity(there)
    (files / "guess.py").write_text(TASK.replace("Higher", "More"))
    changed = composed("task.source=guess.py:build")
    assert identity(changed) != identity(here)
    (difference,) = differing_keys(to_plain(here), to_plain(changed))
    assert difference.startswith("task.source (guess.py:build#")
    with pytest.raises(UserError, match=r"task\.source=.*guess\.py:build has changed since the run was started; put it back"):
        load_code(here.task.source, "task.source")


def test_a_stored_configuration_is_read_without_its_code(files, tmp_path):
    from mth.runs.lock import lock_run

    config = composed(
        "task.source=guess.py:build", "eval.sources.other=guess.py:build", "eval.tasks=[guess,other]", "mask.source=stride.py:STRIDE"
    )
    with lock_run(tmp_path / "run", config):
        pass
    for name in ("guess", "stride"):
        (files / f"{name}.py").unlink()
    assert read_config(tmp_path / "run" / "config.yaml") == config
    same, _ = find_runs([tmp_path], [config])
    assert same == {identity(config): [tmp_path / "run"]}


def package(folder, entry_points_text):
    """An installed package with a task and a mask family."""
    (folder / "own_package").mkdir()
    (folder / "own_package" / "__init__.py").write_text("")
    (folder / "own_package" / "tasks.py").write_text(TASK)
    (folder / "own_package" / "masks.py").write_text(MASK)
    info = folder / "own_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points_text)


@pytest.fixture
def on_path(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("own_package")]:
        del sys.modules[name]


def test_entry_points_are_options(on_path):
    package(on_path, "[mth.tasks]\nguess = own_package.tasks:build\n[mth.masks]\nstride = own_package.masks:STRIDE\n")
    config = composed("task=guess", "mask=stride")
    assert (config.task.name, config.mask.family) == ("guess", "stride")
    assert config.task.source == pinned("own_package.tasks:build", "task.source")
    preflight(cells_of(["-m", "task=guess,arithmetic", "mask=stride", "sparsity=99", *SMALL]))
    beside = composed("task=arithmetic", "eval.tasks=[arithmetic,guess]")
    assert beside.eval.sources == {"guess": config.task.source}
    (on_path / "own_package" / "masks.py").write_text(MASK + "# changed\n")  # the whole package is the code
    assert pinned("own_package.tasks:build", "task.source") != config.task.source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[mth.tasks]\narithmetic = own_package.tasks:build\n",
            "entry point arithmetic of mth.tasks in the package own-package: mth has one of this name",
        ),
        (
            "[mth.masks]\nrandom = own_package.masks:STRIDE\n",
            "entry point random of mth.masks in the package own-package: mth has one of this name",
        ),
    ],
)
def test_an_entry_point_whose_name_exists_is_refused_before_a_run(on_path, text, message):
    package(on_path, text)
    with pytest.raises(UserError, match=message):
        preflight(cells_of(SMALL))


def test_a_mask_family_and_a_rule_of_ones_own(files):
    mask = MaskConfig("stride", source=pinned("stride.py:STRIDE", "mask.source"), options={"every": 4})
    assert sample_mask({"w": (3, 4)}, mask, 50, 0)["w"].tolist() == [0, 4, 8]
    config = AlgorithmConfig(source=pinned("rule.py:rule", "algorithm.source"))
    ratio = torch.tensor([0.0, 2.0])
    loss, sums = policy_loss(ratio, torch.zeros(2), torch.tensor([1.0, -1.0]), config, 2)
    torch.testing.assert_close(loss, -(ratio.exp() * torch.tensor([1.0, -1.0])).sum() / 2)
    assert sums["ratio_limited"] == 0


@pytest.mark.parametrize(
    ("name", "text", "key", "message"),
    [
        ("stride.py", MASK.replace("Family(draw", "dict(draw=draw) or (draw"), "mask.source=stride.py:STRIDE", "at line"),
        ("stride.py", "STRIDE = 3", "mask.source=stride.py:STRIDE", r"must be a Family\(draw, counts"),
        ("stride.py", MASK.replace("return {name: len", "return {name: -len"), "mask.source=stride.py:STRIDE", "counts gives -"),
        ("stride.py", MASK.replace('* mask.options["every"]', "* 0"), "mask.source=stride.py:STRIDE", "must be sorted, distinct"),
        ("stride.py", MASK.replace("counts[name])", "counts[name] + 1)"), "mask.source=stride.py:STRIDE", "both must agree"),
        (
            "stride.py",
            MASK.replace("return lambda", "1 / 0\n    return lambda"),
            "mask.source=stride.py:STRIDE",
            r"cannot draw at line 13 \(ZeroDivision",
        ),
        ("rule.py", RULE.replace(", ratio < 0", ""), "algorithm.source=rule.py:rule", r"must return two tensors \[N\]"),
        ("rule.py", RULE.replace("-ratio * advantages", "-advantages"), "algorithm.source=rule.py:rule", "does not depend on the ratio"),
        ("rule.py", RULE.replace("ratio, advantages, config", "ratio"), "algorithm.source=rule.py:rule", "TypeError"),
        ("rule.py", "rule = 1", "algorithm.source=rule.py:rule", "is no function"),
    ],
)
def test_other_code_that_does_not_work_is_refused_before_a_run(files, name, text, key, message):
    (files / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        preflight(cells_of([key, "task=arithmetic", "task.train_rows=32", *SMALL]))
    assert "\n" not in str(caught.value)


def test_a_grid_runs_the_code_as_it_was_and_a_checkpoint_runs_it_only_if_asked(files):
    """Two files are changed after the launch; the cell runs what was copied."""
    cells = cells_of(["-m", "task.source=guess.py:build", "mask.source=stride.py:STRIDE", "algorithm.source=rule.py:rule", *SMALL])
    grid = prepare(cells, files / "multirun" / "grid", files / "multirun")
    kept = {str(path.relative_to(grid.code)) for path in (grid.code / "user_code").rglob("*.py")}
    assert {Path(name).name for name in kept} == {"guess.py", "stride.py", "rule.py"}
    (files / "guess.py").write_text("raise RuntimeError('changed')")
    (files / "stride.py").unlink()
    start(grid, grid.cells, detach=False)
    assert finish(grid) == [0.0]
    run = grid.cells[0].dir
    assert "family: stride" in (run / "config.yaml").read_text()
    (files / "guess.py").write_text(TASK)
    (files / "stride.py").write_text(MASK)
    with pytest.raises(UserError, match=r"the checkpoint names code of its own, which would run: add task\.source=.*guess\.py:build"):
        evaluation([f"checkpoint={run}"])
    with pytest.raises(UserError, match=r"add mask\.source=.*stride\.py:STRIDE if it is yours"):
        evaluation([f"checkpoint={run}", "task.source=guess.py:build"])
    _, result = evaluation([f"checkpoint={run}", "task.source=guess.py:build", "mask.source=stride.py:STRIDE"])
    assert len(result.rewards["guess"]) == 4
    with pytest.raises(UserError, match=r"add --own-code if .*stride\.py:STRIDE is yours"):
        export(run, files / "out")
    export(run, files / "out", own_code=True)
    assert (files / "out" / "model.safetensors").is_file()


def test_options_of_another_task_are_not_those_of_the_trained_one(files):
    from mth.tasks import eval_sections

    config = make_config(task={"name": "own", "source": "guess.py:build", "options": {"most": 50}}, eval={"tasks": ["guess", "arithmetic"]})
    sections = eval_sections(config)
    assert sections["guess"] is None and (sections["arithmetic"].source, sections["arithmetic"].options) == (None, {})


def test_experiments_know_an_own_task_and_the_command_that_trains_it(files):
    """Reports place runs of an own task in the paper's experiments, also once the file has changed."""
    words = ["task.source=guess.py:build", "task.options.most=50", "train.steps=3"]
    cells = [cell.config for cell in cells_of(["-m", "experiment=fig3_sparsity", "model=tiny", *words])]
    (files / "guess.py").write_text("changed")
    found = need("fig3_sparsity", cells[0], [])
    assert found.cells == [identity(cell) for cell in cells] and found.missing == len(cells)
    assert "#" not in found.command and "task=own" in found.command and "guess.py:build" in found.command
    library = need("fig3_sparsity", composed("experiment=fig3_sparsity", "model=tiny", "task=reasoning_gym", "task.dataset=chain_sum"), [])
    assert "task=reasoning_gym" in library.command and "chain_sum" in library.command
