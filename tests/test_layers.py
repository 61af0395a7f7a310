"""The house rules that imports and sizes can show: a room imports only from rooms to its left, files and functions are short."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mth"
ROOMS = ["foundations", "config", "tickets", "tasks", "models", "rollout", "runs", "training", "analysis", "grid"]
COMMANDS = ["__main__", "train", "evaluate", "export", "pretrain", "report", "samples", "serve", "watch", "library"]
LEVEL = {room: level for level, room in enumerate(ROOMS)} | dict.fromkeys(COMMANDS, len(ROOMS))
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
OTHERS = sorted(path for folder in ("tests", "benchmarks", "hydra_plugins") for path in (PACKAGE.parent / folder).rglob("*.py"))


def imports(path):
    """Modules of mth that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("mth."))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mth":
            for alias in node.names:
                inside = PACKAGE.parent.joinpath(*node.module.split("."), alias.name)
                yield f"{node.module}.{alias.name}" if inside.is_dir() or inside.with_suffix(".py").is_file() else node.module


def room_of(path):
    """The room of a file; what `python -m` runs is a command wherever it lies."""
    return "__main__" if path.name == "__main__.py" else path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) != "__init__"], ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_from_rooms_to_its_left(path):
    room = room_of(path)
    assert room in LEVEL, f"{path} is in no room: files at the top of mth/ are commands"
    for module in imports(path):
        other = module.split(".")[1]
        assert other == room or LEVEL[other] < LEVEL[room], f"{path} ({room}) imports {module}"


def test_there_is_no_import_cycle_inside_a_room():
    graph = {}
    for path in FILES:
        name = ".".join(("mth", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        graph[name] = {module for module in imports(path) if module != name}
    done: set[str] = set()

    def visit(name, above):
        assert name not in above, f"import cycle: {' -> '.join([*above[above.index(name) :], name])}"
        if name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, [*above, name])
            done.add(name)

    for name in graph:
        visit(name, [])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_are_short_and_say_what_they_are(path):
    text = path.read_text()
    assert text.count("\n") <= 350, f"{path} has {text.count(chr(10))} lines"
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{path} does not say what it is"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            limit = 60 if (path.name, node.name) == ("loop.py", "train") else 80
            assert node.end_lineno - node.lineno < limit, f"{path}:{node.lineno} {node.name} is too long"
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_files_beside_the_package_are_short_too(path):
    text = path.read_text()
    assert text.count("\n") <= 350, f"{path} has {text.count(chr(10))} lines"
    assert not text or ast.get_docstring(ast.parse(text)), f"{path} does not say what it is"


def test_tickets_and_tasks_do_not_know_each_other():
    for room, other in (("tickets", "tasks"), ("tasks", "tickets")):
        assert not any(module.split(".")[1] == other for path in (PACKAGE / room).rglob("*.py") for module in imports(path))


def test_hydra_is_used_through_its_public_face_only():
    """Hydra is developed on: what is under `hydra._internal` may change with any release."""
    for path in [*FILES, *(PACKAGE.parent / "hydra_plugins").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(module.startswith("hydra._internal") for module in modules), path


def loaded(statement):
    code = f"{statement}\nimport sys\nprint(*[m for m in ('torch', 'vllm', 'mlflow', 'transformers', 'datasets') if m in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_configuration_and_commands_load_nothing_heavy():
    assert loaded("import mth; dir(mth)") == []
    assert loaded("import mth; mth.attach") == ["torch"]
    assert loaded("import mth.config.schema, mth.config.stored, mth.config.cells, mth.config.help") == []
    for module in (
        "train",
        "evaluate",
        "export",
        "pretrain",
        "report",
        "samples",
        "serve",
        "watch",
        "__main__",
        "grid.__main__",
        "grid.state",
        "runs.__main__",
    ):
        assert loaded(f"import mth.{module}") == []
    assert loaded("import mth.analysis.finding, mth.analysis.listing, mth.analysis.run_page, mth.grid.cleaning") == []
