"""What an addition costs, as CONTRIBUTING says: one of each kind is added to a copy of the package, in so many files, and runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

TASK = {
    "mth/tasks/parity.py": '''"""Say whether a number is even."""

from mth.tasks.base import Episode, Task, hold_out

SOURCE = None


def score(episode, replies):
    return {"reward": float(bool(replies) and replies[0].strip() == episode.truth[0])}


def build(config):
    rows = [Episode(f"n{n}", (f"Is {n} even?",), ("yes" if n % 2 == 0 else "no",)) for n in range(config.train_rows + 16)]
    return Task("parity", *hold_out(rows, config, 16), score)
''',
    "conf/task/parity.yaml": "name: parity\ntrain_rows: 32\n",
}
MASK = {
    "mth/tickets/masks/stride.py": '''"""Every n-th entry of each tensor."""

import math

import numpy as np

from mth.tickets.indices import index_dtype
from mth.tickets.masks.base import Family


def counts(shapes, percent, mask):
    return {name: len(range(0, math.prod(shape), mask.options["every"])) for name, shape in shapes.items()}


def draw(shapes, counts, mask_seed, mask, weights):
    return lambda name: np.arange(counts[name], dtype=index_dtype(math.prod(shapes[name]))) * mask.options["every"]


FAMILIES = {"stride": Family(draw, counts, options={"every": 100})}
''',
    "conf/mask/stride.yaml": "family: stride\noptions:\n  every: 100\n",
}
RULE = {
    "mth/config/choices.py": ('    drop = "drop"\n', '    drop = "drop"\n    free = "free"\n'),
    "mth/training/losses.py": (
        "    Ratio.drop: dropped_loss,\n",
        "    Ratio.drop: dropped_loss,\n    Ratio.free: lambda ratio, advantages, config: (-ratio * advantages, ratio < 0),\n",
    ),
}
ENGINE = {
    "mth/rollout/cautious.py": '''"""The hf engine at half the temperature."""

from mth.rollout.hf.engine import HfEngine


class CautiousEngine(HfEngine):
    def generate(self, requests, max_tokens, temperature, stops=frozenset(), **options):
        return super().generate(requests, max_tokens, temperature / 2, stops, **options)
''',
    "mth/rollout/__init__.py": (
        'ENGINES: dict[str, Callable[[Policy, Ticket, RolloutConfig], RolloutEngine]] = {"hf": _hf,',
        "def _cautious(policy, ticket, config):\n    from mth.rollout.cautious import CautiousEngine\n\n    return CautiousEngine(policy, ticket, config)\n\n\nENGINES = {'cautious': _cautious, 'hf': _hf,",
    ),
    "conf/rollout/cautious.yaml": "engine: cautious\n",
}
FIGURE = {
    "mth/analysis/figures/lengths.py": '''"""Length of the completions by step."""

import pandas as pd

from mth.analysis.aggregate import series
from mth.analysis.figures.base import FigureSpec, Item
from mth.analysis.style import panels


def make(setting, needed):
    figure, (axes,) = panels(1)
    lengths = pd.DataFrame({run.name: series(run, "completion/tokens_mean") for run in needed.runs if run.done})
    axes.plot(lengths.index, lengths)
    return [Item("lengths", "Length of completions", "Tokens per rollout.", figure, lengths.reset_index(), needed)]


FIGURE = FigureSpec("lengths", make, position=1000, experiments=("lengths",))
''',
    "conf/experiment/lengths.yaml": "# @package _global_\ndefaults:\n  - override /model: tiny\n  - override /task: arithmetic\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      mask_seed: 0,10\n",
}
KEY = {
    "mth/config/schema.py": (
        "    steps: int = key(100,",
        '    patience: int = key(3, "a new key", least=2, later=True)\n    steps: int = key(100,',
    )
}
COST = ((TASK, 2), (MASK, 2), (RULE, 2), (ENGINE, 3), (FIGURE, 2), (KEY, 1))


def add(folder, files):
    """Write the new files, and change the others by (old, new)."""
    for name, content in files.items():
        path = folder / name
        if isinstance(content, tuple):
            text = path.read_text()
            assert content[0] in text, f"{name} no longer holds {content[0]!r}"
            path.write_text(text.replace(*content, 1))
        else:
            assert not path.exists()
            path.write_text(content)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy")
    for name in ("mth", "conf", "hydra_plugins"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for files, cost in COST:
        assert len(files) == cost
        add(folder, files)
    (folder / "work").mkdir()
    return folder


def run(copy, module, *arguments, check=True):
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=copy / "work", env=environment, capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


SMALL = ["train.steps=1", "train.batch_size=8", "rollout.group_size=4", "rollout.max_tokens=8", "eval.samples=8", "tracker=none"]


def test_a_run_uses_all_of_them(copy):
    more = ["task=parity", "mask=stride", "mask.options.every=50", "algorithm.ratio=free", "rollout=cautious", "train.patience=2"]
    said = run(copy, "mth.train", *more, *SMALL, "run_dir=all/one")
    assert "parity" in said.stdout
    config = (copy / "work" / "all" / "one" / "config.yaml").read_text()
    assert all(line in config for line in ("name: parity", "family: stride", "every: 50", "ratio: free", "engine: cautious", "patience: 2"))
    run(copy, "mth.report", "all", "--skip-paper-tables")
    assert "stride, every=50" in (copy / "work" / "all" / "report" / "memory.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.patience=1"], "train.patience=1 must be at least 2"),
        (["mask=stride", "+mask.options.evry=3"], "mask.options.evry is unknown; the options of mask.family=stride are: every"),
        (["task=parity", "task.train_rows=1", "train.batch_size=64"], "fewer than the 16 prompts of a step"),
        (["rollout.engine=cautios"], "rollout.engine=cautios is unknown"),
    ],
)
def test_each_is_checked_before_anything_starts(copy, arguments, message):
    done = run(copy, "mth.train", *SMALL, *arguments, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_help_and_identities_follow(copy):
    said = run(copy, "mth.train", "--help").stdout
    assert "train.patience" in said and "a new key (at least 2)" in said and "parity" in said and "clip|drop|free" in said
    code = "import json, sys; from mth.config.identity import identity; from mth.config.stored import from_plain\n"
    code += "lines = open(sys.argv[1]).read().splitlines()\nprint(json.dumps({(d := json.loads(l))['name']: identity(from_plain(d['config'])) for l in lines}))"
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONSAFEPATH": "1"}
    runs = REPOSITORY / "docs/results/arithmetic/runs.jsonl"
    found = subprocess.run([sys.executable, "-c", code, runs], env=environment, capture_output=True, text=True, check=True, cwd=copy).stdout
    from tests.test_pins import PINS

    assert json.loads(found) == PINS["identities"]["arithmetic"]  # later keys and tasks leave published identities alone


def test_the_figure_is_in_the_report(copy):
    run(copy, "mth.train", "experiment=lengths", *SMALL, "run_dir=grid")
    run(copy, "mth.report", "grid", "--skip-paper-tables")
    report = copy / "work" / "grid" / "report"
    assert (report / "lengths.png").stat().st_size > 1000
    assert (report / "lengths.csv").read_text().count("\n") >= 1
    assert "Length of completions" in (report / "index.html").read_text()
