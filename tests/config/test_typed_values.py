"""What people type: the override that it becomes, or the line that says what to type."""

import os
import re

import pytest

from mth.config.cells import cells_of, read_command
from mth.config.options import options
from mth.config.overrides import as_overrides, rewrite_numbers
from mth.config.typed_values import quoted
from mth.foundations.errors import UserError

HOME = os.path.expanduser("~")


def read(line, config_name="config"):
    return rewrite_numbers(as_overrides(line.split("|"), config_name), config_name)


@pytest.mark.parametrize(
    ("typed", "becomes"),
    [
        ("task.path=~/d.jsonl", f"task.path={HOME}/d.jsonl"),
        ("run_dir='~/my runs'", f"run_dir='{HOME}/my runs'"),
        ("eval.paths={gsm8k:~/g.jsonl}", f"eval.paths={{gsm8k:{HOME}/g.jsonl}}"),
        ("task.path=a~/b.jsonl", 'task.path="a~/b.jsonl"'),
        ("run_dir=multirun/lr=1e-4", 'run_dir="multirun/lr=1e-4"'),
        ("run_dir=multirun/a#1 (b)", 'run_dir="multirun/a#1 (b)"'),
        ("run_dir=multirun/über", 'run_dir="multirun/über"'),
        ("task.path=data[v1].jsonl", 'task.path="data[v1].jsonl"'),
        ("run_dir=[x]", 'run_dir="[x]"'),
        ("run_dir=it's", 'run_dir="it\'s"'),
        ("run_dir=1e-4", 'run_dir="1e-4"'),
        ("run_dir=multirun/a-b_1.2", "run_dir=multirun/a-b_1.2"),
        ("run_dir=2026-11-27", "run_dir=2026-11-27"),
        ("run_dir=${now:%H}", "run_dir=${now:%H}"),
        ("model.path=null", "model.path=null"),
        ("task.path=null,b.jsonl", "task.path=null,b.jsonl"),
        ("sparsity=99%", "sparsity.percent=99"),
        ("sparsity=99%,99.9 %", "sparsity.percent=99,99.9"),
        ("sparsity.percent=99%", "sparsity.percent=99"),
        ("--sparsity|99", "sparsity.percent=99"),
        ("--sparsity=99", "sparsity.percent=99"),
        ("--mask-seed|3", "mask_seed=3"),
        ("--force", "force=true"),
        ("eval.tasks=arithmetic", "eval.tasks=[arithmetic]"),
        ("eval.tasks=[arithmetic]", "eval.tasks=[arithmetic]"),
        ("train.steps=1e3", "train.steps=1000"),
        ("sparsity=sort(99.9,99)", "sparsity.percent=sort(99.9,99)"),
        ("seed=shuffle(1,2)", "seed.train=shuffle(1,2)"),
        ("sparsity=glob(d*)", "sparsity=dense"),
        ("optimizer=glob(adam*)", "optimizer=adam,adamw"),
        ("train.steps=${mask_seed}", "train.steps=${mask_seed}"),
        (r"task.stop=\n", 'task.stop="\n"'),
        (r"task.stop='\n'", "task.stop='\n'"),
        (r"eval.per_task.gsm8k.stop=\t", 'eval.per_task.gsm8k.stop="\t"'),
    ],
)
def test_what_has_one_meaning_is_accepted(typed, becomes):
    assert read(typed) == [becomes]
    assert rewrite_numbers([becomes]) == [becomes]  # a grid reads it again


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("run_dir=a(1),b", "run_dir=a(1),b cannot be read; put the value in quotes: 'run_dir=\"a(1),b\"'"),
        ("mask_seed=[0,1]", "mask_seed=[0,1]: mask_seed= takes one value; for a grid type mask_seed=0,1 with -m"),
        ("sparsity=[99,99.9]", "sparsity=[99,99.9]: sparsity= takes one value; for a grid write sparsity=99,99.9 with -m"),
        ("mask_seed=0..9", "mask_seed=0..9: for 0 to 9 type 'mask_seed=range(0,10)' with -m"),
        ("seed.train=1-3", "seed.train=1-3: for 1 to 3 type 'seed.train=range(1,4)' with -m"),
        (
            "eval.tasks=arithmetic,gsm8k",
            "eval.tasks=arithmetic,gsm8k: for one run with all of them type eval.tasks=[arithmetic,gsm8k], "
            "for a grid eval.tasks=[arithmetic],[gsm8k] with -m",
        ),
        ("train.steps=ten", "train.steps=ten: train.steps= takes a whole number"),
        ("train.steps=1.5", "train.steps=1.5: train.steps= takes a whole number"),
        ("lr.value=fast", "lr.value=fast: lr.value= takes a number"),
        ("force=maybe", "force=maybe: force= takes true or false"),
        ("train.steps=", "train.steps= needs a value: a whole number"),
        ("train.steps=1,000", "train.steps=1,000: a comma stands between the values of a grid; type train.steps=1000"),
        ("lr=0,0001", "lr.value=0,0001: a comma stands between the values of a grid; type lr.value=0.0001"),
        (
            "model=gpt2",
            f"model=gpt2 is not one that mth names ({', '.join(options('model'))}); for another type model.path=gpt2 lr=RATE",
        ),
        ("tracker=wand", "tracker=wand is unknown; choose one of "),
        ("sparsity=99percent", "sparsity=99percent is unknown; give a number, or choose one of dense, paper"),
        ("task=", "task= needs a value; one of "),
        ("mask_seed=glob(*)", "mask_seed=glob(*): glob() chooses options of a group ("),
        ("mask=glob(x*)", "mask=glob(x*) fits no option; choose from "),
        ("sparsity|99", "sparsity: write KEY=VALUE, as in sparsity=99"),
        ("train.steps:5", "train.steps:5: write KEY=VALUE, as in train.steps=5"),
        ("force", "force: write KEY=VALUE, as in force=true"),
        ("--sparsity", "--sparsity: write sparsity=VALUE"),
        ("--speed=9", "--speed=9: there is no such option; keys are written KEY=VALUE, --help lists them"),
        ("~task", "~task: every group has a choice; give another one"),
    ],
)
def test_what_has_no_meaning_or_several_is_one_line_that_says_what_to_type(typed, line):
    with pytest.raises(UserError, match=f"^{re.escape(line)}") as error:
        read(typed)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train.lr=1e-4"], "train.lr: there is no such key; did you mean lr?"),
        (["train.learning_rate=1e-4"], "train.learning_rate: there is no such key; did you mean lr?"),
        (["steps=5"], "steps: there is no such key; did you mean train.steps?"),
        (["mask_seed=sort(3,1,2)"], "mask_seed=sort(3,1,2) asks for several runs: add -m"),
        (["mask_seed=null"], "mask_seed=null: field 'mask_seed' is not Optional"),
    ],
)
def test_what_hydra_refuses_is_said_in_one_line(arguments, line):
    with pytest.raises(UserError, match=f"^{re.escape(line)}$"):
        cells_of(arguments)


def test_a_value_in_quotes_arrives_as_it_was_typed_and_sweeps_are_sorted():
    (cell,) = cells_of(["--run_dir", "multirun/lr=1e-4 (ü)", "--sparsity=99%", "model.path=my~model#2", "lr=1e-3"])
    assert (cell.config.run_dir, cell.config.model.path, cell.config.sparsity.percent) == ("multirun/lr=1e-4 (ü)", "my~model#2", 99)
    assert read_command(["-m", "mask_seed=sort(3,1,2)"]).cells == [["mask_seed=1"], ["mask_seed=2"], ["mask_seed=3"]]


@pytest.mark.parametrize("value", ["a b", "a,b", "a=b", "it's", 'say "x"', "both ' and \"", "über", "1e-4", "[x]", "plain/path"])
def test_any_text_can_be_quoted(value):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (parsed,) = OverridesParser.create().parse_overrides([quoted("run_dir", value)])
    assert not parsed.is_sweep_override() and str(parsed.value()) == value


def test_pretrain_has_keys_of_its_own():
    assert read("--steps|200|out=multirun/a=b", "pretrain") == ["steps=200", 'out="multirun/a=b"']
    with pytest.raises(UserError, match=r"^seed=: Hydra takes it for a group of mth.train; set it in conf/pretrain.yaml$"):
        read("seed=7", "pretrain")
