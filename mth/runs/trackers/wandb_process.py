"""The process that holds the library of Weights & Biases: reads what to do as lines of JSON, answers each with a line.

Ends itself if the training process is gone.
"""

import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

FAREWELL_S = 60.0  # how long an orphan may take to send what it has, in seconds


def init(dir: str, **values: Any) -> Any:
    """Open or continue the run. Offline, removes what earlier processes wrote of it: everything is sent again."""
    import wandb

    settings = wandb.Settings(console="off", silent=True, disable_git=True, save_code=False, x_disable_stats=True)
    run = wandb.init(dir=dir, resume="allow", settings=settings, **values)
    if run.offline:
        own = Path(run.dir).parent
        for other in own.parent.glob(f"offline-run-*-{values['id']}*"):  # W&B adds -1 to the name of a second start within a second
            if other != own:
                shutil.rmtree(other)
    return run


def log(run: Any, rows: list[tuple[int, float, dict[str, float]]]) -> None:
    """Log steps with their own times. Steps that a continued run has already are left out: W&B takes none twice."""
    for step, time_s, metrics in rows:
        if step >= run.starting_step:
            run.log(metrics | {"_timestamp": time_s}, step=step)


def finish(run: Any, exit_code: int, summary: dict[str, Any], notes: str, files: list[str], table: dict[str, Any] | None) -> None:
    """Send how the run ended, files and samples."""
    import wandb

    run.notes = notes
    run.summary.update(summary | ({"samples": wandb.Table(**table)} if table else {}))
    for file in files:
        run.save(file, base_path=str(Path(file).parent), policy="now")
    run.finish(exit_code=exit_code)


def serve() -> None:
    """Answer until `finish`, or until nobody asks any more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints must not look like an answer
    run, asked = None, ""
    for line in sys.stdin:
        values = json.loads(line)
        asked, problem = values.pop("do"), None
        try:
            if asked == "init":
                run = init(**values)
            elif asked == "log":
                log(run, **values)
            else:
                finish(run, **values)
        except Exception as error:  # whatever the library raises is told to the training process
            problem = str(error).strip().split("\n")[0] or type(error).__name__
        answers.write(json.dumps({"problem": problem}) + "\n")
        answers.flush()
        if asked == "finish":
            return
    if run is not None:
        threading.Timer(FAREWELL_S, os.killpg, (os.getpgid(0), signal.SIGKILL)).start()
        run.finish(exit_code=1)
    os._exit(1)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # the training process ends this one
        signal.signal(number, signal.SIG_IGN)
    serve()
