"""The examples of docs/tasks.md work as they stand."""

import re
import shlex
from pathlib import Path

from mth.config.cells import cells_of
from mth.grid.preflight import preflight
from mth.tasks import load_tasks

PAGE = (Path(__file__).parents[1] / "docs" / "tasks.md").read_text()
FILES = dict(zip(("capitals", "guess"), re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL), strict=True))
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def test_the_files_are_tasks_and_the_commands_pass_every_check(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / f"{name}.py").write_text(text)
    commands = [command for command in COMMANDS if "task=verifiers" not in command]  # needs an environment
    assert len(commands) == 3
    cells = [cell for command in commands for cell in cells_of(shlex.split(command)[3:])]
    assert [cell.config.task.name for cell in cells] == ["capitals"] * 5 + ["reasoning_gym_chain_sum"]
    preflight([cells[0], cells[-1]])
    train, _ = load_tasks(cells[0].config)
    assert train.score(train.train[0], [f"It is {train.train[0].truth[0]}."]) == {"reward": 1.0}
    (guess,) = cells_of(["task.source=guess.py:build", "task.options.most=20"])
    task, _ = load_tasks(guess.config)
    assert task.next_turn(next(e for e in task.train if e.truth != ("0",)), ["0"]) == "Higher."
