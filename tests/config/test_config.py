"""Configuration: numbers for groups, every option, the paper's tables, and refusals that name the key."""

import itertools
from pathlib import Path

import pytest
import yaml

from mth.config.cells import cells_of, read_command
from mth.config.checks import check_trainable
from mth.config.choices import Dtype
from mth.config.compose import compose
from mth.config.identity import identity
from mth.config.launchers import launcher_settings
from mth.config.learning_rates import table_lr
from mth.config.overrides import flags_first, rewrite_numbers
from mth.config.schema import Config, LrConfig, ModelConfig
from mth.config.stored import from_plain, literal, load, read_config, to_plain
from mth.foundations.errors import UserError
from mth.foundations.paths import conf_dir
from mth.runs.folder import RunFolder
from tests.conftest import make_config

GROUPS = {folder.name: sorted(p.stem for p in folder.glob("*.yaml")) for folder in conf_dir().iterdir() if folder.is_dir()}


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        ("sparsity=99,99.9", "sparsity.percent=99,99.9"),
        ("sparsity=0", "sparsity.percent=0"),
        ("lr=1e-4", "lr.value=1e-4"),
        ("lr=1e-4, 5e-3", "lr.value=1e-4, 5e-3"),
        ("seed=7", "seed.train=7"),
        ("seed=range(1,4)", "seed.train=range(1,4)"),
        ("sparsity=dense", "sparsity=dense"),
        ("lr=table2", "lr=table2"),
        ("lr.value=1e-4", "lr.value=1e-4"),
        ("mask_seed=0,10", "mask_seed=0,10"),
        ("-m", "-m"),
        ("model.path=99", "model.path=99"),
    ],
)
def test_numbers_given_to_groups(given, becomes):
    assert rewrite_numbers([given]) == [becomes]


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        ("a=1 -m b=2,3", "-m a=1 b=2,3"),
        ("a=1 --cfg job ~b -p lr +c=-1", "--cfg job -p lr a=1 ~b +c=-1"),
        ("a=1 --config-dir=x b=--cfg --multirun", "--config-dir=x --multirun a=1 b=--cfg"),
    ],
)
def test_flags_may_stand_anywhere(given, becomes):
    assert flags_first(given.split()) == becomes.split()


CODE = f"{Path(__file__)}:Config"  # is there; what it names is checked before a run starts
NEEDED = {
    "task=own": [f"task.source={CODE}"],
    "task=reasoning_gym": ["task.dataset=chain_sum"],
    "task=verifiers": ["task.environment=some-id"],
    "mask=own": [f"mask.source={CODE}"],
}


@pytest.mark.parametrize(("group", "option"), [(g, o) for g, options in GROUPS.items() for o in options if g not in ("recipe",)])
def test_every_option_of_every_group_composes_and_validates(group, option):
    assert isinstance(load(compose([f"{group}={option}", *NEEDED.get(f"{group}={option}", [])])), Config)


def test_every_pair_of_model_and_task_composes():
    for model, task in itertools.product(GROUPS["model"], GROUPS["task"]):
        config = load(compose([f"model={model}", f"task={task}", *NEEDED.get(f"task={task}", [])]))
        named = {"own": "test_config", "reasoning_gym": "reasoning_gym_chain_sum", "verifiers": "verifiers_some_id"}
        assert (config.model.name, config.task.name) == (model, named.get(task, task))


def test_all_groups_of_the_readme_exist():
    assert set(GROUPS) >= {"model", "task", "sparsity", "seed", "lr", "mask", "algorithm", "optimizer", "rollout", "tracker", "experiment"}


@pytest.mark.parametrize(
    ("model", "task", "expected"),
    [
        ("qwen2.5-0.5b-instruct", "alphabet_sort", (150, 512, 16, 128, 0.7, 128, 1024, ["alphabet_sort"])),
        ("qwen2.5-0.5b", "gsm8k", (100, 512, 16, 1024, 0.9, 1024, 1319, ["gsm8k"])),
        ("qwen2.5-1.5b", "math", (100, 512, 8, 2048, 0.9, 1024, 1319, ["gsm8k", "math500"])),
    ],
)
def test_a_pair_of_table_1_gets_its_column_of_table_4(model, task, expected):
    c = load(compose([f"model={model}", f"task={task}"]))
    got = (
        c.train.steps,
        c.train.batch_size,
        c.rollout.group_size,
        c.rollout.max_tokens,
        c.eval.temperature,
        c.eval.max_tokens,
        c.eval.samples,
        c.eval.tasks,
    )
    assert got == expected
    assert (c.rollout.temperature, c.algorithm.clip_eps, c.algorithm.kl_coef, c.optimizer.weight_decay, c.optimizer.max_grad_norm) == (
        1.0,
        0.2,
        0.0,
        0.01,
        1.0,
    )
    assert (c.seed.train, c.seed.eval, c.eval.every, c.optimizer.beta1, c.optimizer.beta2) == (42, 2001, 10, 0.9, 0.999)
    assert load(compose([f"model={model}", f"task={task}", "train.steps=2"])).train.steps == 2


def test_paper_and_as_run_differ_as_documented():
    paper, as_run = (load(compose([f"algorithm={name}", "model=qwen2.5-0.5b", "task=gsm8k"])) for name in ("paper", "as_run"))
    assert (paper.algorithm.advantage.name, paper.algorithm.ratio.name, paper.algorithm.lag) == ("standardized", "clip", 0)
    assert (as_run.algorithm.advantage.name, as_run.algorithm.ratio.name, as_run.algorithm.lag) == ("centered", "drop", 1)
    assert (paper.optimizer.clip_norm.name, as_run.optimizer.clip_norm.name) == ("masked", "dense")
    assert as_run.model.dtype is paper.model.dtype is Dtype.bfloat16  # with fp32 master values in the ticket
    embedded = load(compose(["algorithm=as_run"]))
    assert (embedded.model.dtype, embedded.rollout.dtype) == (Dtype.float32, Dtype.bfloat16)
    assert (paper.optimizer.decay.name, as_run.optimizer.decay.name) == ("plain", "corrected")
    assert (as_run.algorithm.drop_low, as_run.algorithm.drop_high) == (0.125, 8.0)
    assert (paper.task.prompt.name, as_run.task.prompt.name) == ("paper", "environment")
    assert (paper.train.prompt_order.name, as_run.train.prompt_order.name) == ("epochs", "draws")


def test_learning_rates_of_table_2():
    levels = (0, 99, 99.5, 99.9, 99.95, 99.99, 99.999)
    assert [table_lr("qwen2.5-0.5b", s) for s in levels] == pytest.approx([1e-6, 1e-4, 1e-4, 1e-3, 1e-3, 1e-3, 5e-3])
    assert [table_lr("qwen2.5-1.5b", s) for s in levels] == pytest.approx([1e-6, 1e-4, 1e-4, 1e-3, 1e-3, 4e-3, 1e-2])
    assert table_lr("qwen2.5-1.5b", 90) == pytest.approx(1e-5, rel=1e-3)  # half way in log density between 0 % and 99 %
    assert table_lr("qwen2.5-1.5b", 99.9999) == pytest.approx(1e-2)
    assert load(compose(["model=qwen2.5-0.5b-instruct", "sparsity=99.9"])).lr.value == pytest.approx(1e-3)
    assert load(compose(["sparsity=99.9", "lr=2e-3"])).lr.value == 2e-3


def test_a_model_without_a_table_needs_a_rate():
    with pytest.raises(UserError, match=r"someone/else has no learning rates; give lr="):
        check_trainable(Config(model=ModelConfig(path="someone/else")))
    check_trainable(Config())
    config = Config(model=ModelConfig(path="someone/else"), lr=LrConfig(1e-4))
    assert (config.lr.value, config.model.name) == (1e-4, "else")
    assert Config(model=ModelConfig(path="someone/else", lr_table="tiny")).lr.value == Config().lr.value


def test_full_fine_tuning_is_one_run_whatever_the_mask():
    full = identity(load(compose(["sparsity=0"])))
    assert identity(load(compose(["sparsity=0", "mask_seed=10", "mask=first_layer_whole"]))) == full
    assert identity(load(compose(["mask=first_layer"]))) != identity(load(compose(["mask=first_layer_whole"])))


def test_factor_multiplies_the_table_and_leaves_no_trace():
    config = load(compose(["sparsity=99.9", "lr.factor=0.1"]))
    assert (config.lr.value, config.lr.factor) == (3e-3, 1.0)
    assert identity(config) == identity(load(compose(["sparsity=99.9", "lr=3e-3"])))
    assert from_plain(to_plain(config)) == config


# Every experiment: the product that it sweeps, and where it takes a second to compose, the cells that are left of it.
EXPERIMENTS = {
    "fig1_masks_1.5b": ("math", 40, None),
    "fig2_masks_0.5b": ("alphabet_sort", 40, None),
    "fig3_sparsity": ("alphabet_sort", 35, None),
    "fig4_spectrum": ("alphabet_sort", 1, 1),
    "fig5_6_structured": ("math", 10, 6),
    "fig7_lr": ("alphabet_sort", 25, None),
    "table3_overlap": ("math", 15, None),
    "table5_memory": ("math", 7, 7),
}


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_experiments_hold_the_grids_of_the_paper(name):
    task, product, distinct = EXPERIMENTS[name]
    many, cells, _ = read_command([f"experiment={name}"])
    assert (many, len(cells)) == (True, product)
    if distinct is not None:
        assert len(cells_of([f"experiment={name}", "model=tiny"])) == distinct
    for arguments, expected in (([], task), (["model=tiny"], "arithmetic"), (["model=qwen2.5-0.5b"], "gsm8k")):
        config = load(compose([f"experiment={name}", *arguments, *cells[-1]]))
        assert config.task.name == expected
        assert (config.train.batch_size, config.lr.value is None) == (128 if expected == "arithmetic" else 512, False)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mask.budget=matched"], r"mask\.budget belongs to mask=first_layer"),
        (["mask.magnitude=largest"], r"mask\.magnitude belongs to mask=magnitude"),
        (["lr.factor=0"], r"lr\.factor=0"),
        (["sparsity=100"], r"sparsity\.percent=100 must be in \[0, 100\)"),
        (["sparsity=-1"], r"sparsity\.percent=-1"),
        (["train.batch_size=100"], r"train\.batch_size=100 must be a multiple of rollout\.group_size=8"),
        (["rollout.group_size=1"], r"rollout\.group_size=1"),
        (["train.steps=0"], r"train\.steps=0 must be at least 1"),
        (["lr=-1"], r"lr\.value=-1 must be positive"),
        (["eval.tasks=[alphabet_sort,chess]"], r"eval\.tasks=chess is unknown"),
        (["sparsity=nan"], r"sparsity=nan is unknown; give a number, or choose one of dense, paper"),
        (["optimizer.beta1=1.5"], r"optimizer\.beta1=1\.5 must be in \[0, 1\)"),
        (["optimizer.eps=-1"], r"optimizer\.eps=-1"),
        (["experiment=nothere"], "nothere"),
        (["algorithm.lag=2"], r"algorithm\.lag=2"),
        (["rollout.temperature=0"], r"rollout\.temperature=0"),
        (["model.device=cuda:1", "rollout=vllm"], r"model\.device=cuda:1: .* set CUDA_VISIBLE_DEVICES=1"),
        (["model.device=tpu"], r"model\.device=tpu"),
        (["trian.steps=2"], "trian"),
        (["train.stepz=2"], "stepz"),
        (["sparsity.percent=many"], "many"),
        (["task=chess"], "chess"),
        (["rollout.engine=sglang"], "sglang"),
        (["+new.key=1"], "new"),
    ],
)
def test_bad_input_names_the_key(overrides, message):
    with pytest.raises(UserError, match=message) as error:
        load(compose(overrides))
    assert "\n" not in str(error.value)


def test_configuration_survives_a_round_trip(tmp_path):
    from omegaconf import OmegaConf

    config = make_config(sparsity={"percent": 99.99}, eval={"paths": {"gsm8k": "x", "math": None}})
    assert from_plain(to_plain(config)) == config
    OmegaConf.save(OmegaConf.create(to_plain(config)), tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config
    with pytest.raises(UserError, match="does not exist"):
        read_config(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="does not fit"):
        from_plain(to_plain(config) | {"novel": 1})


@pytest.mark.parametrize("share", [0.5, 0.99, 0.999])
def test_a_share_given_as_a_percent_is_refused(share):
    config = load(compose([f"sparsity={share}"]))
    with pytest.raises(UserError, match=rf"sparsity\.percent={share:g} .*percent: did you mean {100 * share:g}\?"):
        check_trainable(config)
    check_trainable(load(compose(["sparsity=1"])))
    assert from_plain(to_plain(config)) == config  # what was trained with it can still be read


# A key without effect, and what is the same run without it.

# The same keys where they have an effect.


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (["experiment=fig3_sparsity", "model=tiny", "sparsity=dense"], 1),
        (["experiment=fig3_sparsity", "model=tiny", "sparsity=paper,dense"], 6),
        (["experiment=fig3_sparsity", "model=tiny", "sparsity=99"], 5),
        (["experiment=fig7_lr", "model=tiny", "lr=table2"], 5),
        (["-m", "mask=magnitude,first_layer_whole,last_layer_whole", "mask_seed=0,10"], 3),
    ],
)
def test_a_choice_of_a_group_replaces_what_is_swept_below_it(arguments, count):
    assert len(cells_of(arguments)) == count


def test_each_model_of_an_experiment_gets_its_own_task():
    cells = cells_of(["experiment=fig3_sparsity", "model=tiny,qwen2.5-1.5b", "sparsity=dense"])
    assert [(cell.config.model.name, cell.config.task.name) for cell in cells] == [("tiny", "arithmetic"), ("qwen2.5-1.5b", "math")]
    cells = cells_of(["experiment=fig3_sparsity", "model=tiny,qwen2.5-1.5b", "sparsity=dense", "task=gsm8k"])
    assert [cell.config.task.name for cell in cells] == ["gsm8k", "gsm8k"]


def test_the_folders_of_a_grid_are_named_as_asked():
    assert [cell.name for cell in cells_of(["-m", "hydra.sweep.subdir=cell_${mask_seed}", "mask_seed=0,1"])] == ["cell_0", "cell_1"]
    assert len(cells_of(["-m", "run_dir=g${model.name}", "mask_seed=0,1"])) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment=fig3_sparsity,fig7_lr", "model=tiny"], r"experiment=fig3_sparsity,fig7_lr: a grid takes one experiment"),
        (["-m", "sparsity=[99,99.9]"], r"sparsity=\[99,99\.9\]: .* write sparsity=99,99\.9 with -m"),
        (["-m", "mask=[random,magnitude]"], r"mask=\[random,magnitude\]: mask= takes one value"),
        (["-m", "run_dir=g${mask_seed}", "mask_seed=0,1"], r"run_dir=g0 and run_dir=g1: a grid has one folder"),
        (["-m", "run_dir=a,b"], r"run_dir=a and run_dir=b: a grid has one folder"),
        (["-m", "hydra.sweep.subdir=cell", "mask_seed=0,1"], r"hydra\.sweep\.subdir=cell is the same for 2 cells"),
        (["-m", "hydra.sweep.subdir=a/${mask_seed}", "mask_seed=0,1"], r"hydra\.sweep\.subdir=a/0 must name a folder"),
        (["-m", "hydra.sweep.dir=x", "mask_seed=0,1"], r"hydra\.sweep\.dir=x: give the folder of a grid with run_dir="),
        (["run_dir=a=1,b"], r"""cannot be read; put the value in quotes: 'run_dir="a=1,b"'$"""),
    ],
)
def test_a_grid_that_cannot_be_as_asked_is_refused_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        cells_of(arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["${oc.env:MTH_SECRET}", "a\\${oc.env:MTH_SECRET}", "a\\\\${lr.value}", "${", "x}${y", "\\", "${oc.env:MTH_SECRET,b}"]
)
def test_what_a_stored_configuration_holds_is_never_interpolated(text, monkeypatch, tmp_path):
    """A run folder may be somebody else's: its config.yaml must not read this machine's environment."""
    monkeypatch.setenv("MTH_SECRET", "hunter2")
    plain = to_plain(Config()) | {"tracker": {"name": "none", "uri": text, "experiment": text}}
    config = from_plain(plain)
    assert (config.tracker.uri, config.tracker.experiment) == (text, text)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plain))
    assert RunFolder(tmp_path).config().tracker.uri == text
    settings = {"kind": "slurm", "setup": [text]}
    assert literal(launcher_settings(literal(settings)), mark="")["setup"] == [text]
