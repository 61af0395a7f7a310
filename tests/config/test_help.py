"""--help and docs/configuration.md: made from the fields, fast, and complete."""

import subprocess
import sys
from pathlib import Path

import pytest

from mth.config.fields import keys
from mth.config.help import command_help, configuration_page
from mth.config.options import groups, options
from mth.config.pretrain_schema import PretrainConfig
from mth.config.schema import Config
from mth.foundations.errors import UserError

DOCS = Path(__file__).parents[2] / "docs"


def test_every_key_says_what_it_means():
    for key in (*keys(Config), *keys(PretrainConfig)):
        assert len(key.meaning) > 3, f"{key.name} has no meaning"


def test_help_lists_every_group_and_key_with_default_and_range():
    text = command_help("What it does.", [])
    assert text.startswith("What it does.")
    for group in groups():
        assert all(option in text for option in options(group))
    for key in keys(Config):
        assert f"  {key.name} " in text
    (line,) = [line for line in text.splitlines() if line.startswith("  train.steps ")]
    assert "100" in line and "optimizer steps (at least 1)" in line


def test_help_of_one_section():
    text = command_help("What it does.", ["rollout"])
    assert "rollout.group_size" in text and "train.steps" not in text and "What it does" not in text
    assert "hydra.launcher.partition" in command_help("", ["hydra.launcher"])
    with pytest.raises(UserError, match="--help rolout: choose from"):
        command_help("", ["rolout"])


def test_the_page_is_made_from_the_fields():
    assert (DOCS / "configuration.md").read_text() == configuration_page(), "run `make docs`"


@pytest.mark.parametrize(
    "command", ["mth", "mth.train", "mth.evaluate", "mth.pretrain", "mth.export", "mth.report", "mth.samples", "mth.serve", "mth.grid"]
)
def test_every_command_answers_help_without_loading_anything_heavy(command, tmp_path):
    code = f"import sys, runpy; sys.argv = ['x', '--help']\ntry:\n    runpy.run_module({command!r}, run_name='__main__', alter_sys=True)\nexcept SystemExit:\n    pass\n"
    code += "print('LOADED', *[m for m in ('torch', 'hydra', 'pandas', 'matplotlib', 'mlflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert f"python -m {command}" in done.stdout or "python -m mth." in done.stdout
    assert done.stdout.strip().splitlines()[-1] == "LOADED", done.stdout[-300:] + done.stderr


def test_python_m_mth_lists_the_commands(tmp_path):
    said = subprocess.run([sys.executable, "-m", "mth"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    package = Path(__file__).parents[2] / "mth"
    for command in [path.stem for path in package.glob("[a-z]*.py") if "def main(" in path.read_text()] + ["grid"]:
        assert f"python -m mth.{command}" in said
