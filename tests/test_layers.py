"""The house rules that imports can show: a module imports only from lower layers, and configuration stays light."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "mth"

LAYERS = [
    ["errors", "paths", "files", "signals"],
    ["config", "provenance"],
    ["seeds", "launchers"],
    ["compose"],
    ["cells"],
    ["cli"],
    ["tickets", "algorithm", "tasks"],
    ["policy", "checkpoint", "tracking"],
    ["rollout", "pretraining", "runs"],
    ["batches", "evaluation", "gradients"],
    ["update"],
    ["analysis"],
    ["trainer"],
    ["train", "evaluate", "export", "pretrain", "grid", "report", "serve"],
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def imports(path):
    """Rooms of mth that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"mth.{alias.name}" for alias in node.names] if node.module == "mth" else [node.module]
        yield from (name.split(".")[1] for name in names if name.startswith("mth."))


def test_every_module_has_a_layer_and_imports_only_from_lower_ones():
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        assert room in LEVEL, f"{path} has no layer"
        for other in imports(path):
            assert other == room or LEVEL[other] < LEVEL[room], f"{path} ({room}) imports {other}"


def test_tickets_and_algorithm_do_not_know_each_other_nor_tasks():
    for room in ("tickets", "algorithm", "tasks"):
        others = {other for path in (PACKAGE / room).rglob("*.py") for other in imports(path)}
        assert not others & ({"tickets", "algorithm", "tasks"} - {room})


def loaded(statement):
    code = f"{statement}\nimport sys\nprint(*[m for m in ('torch', 'vllm', 'mlflow', 'transformers', 'datasets') if m in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_configuration_and_entry_points_load_nothing_heavy():
    assert loaded("import mth.config") == []
    for entry in ("train", "evaluate", "export", "pretrain", "grid.__main__", "grid.state"):
        assert loaded(f"import mth.{entry}") == []
