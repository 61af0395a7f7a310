"""Commands of mth in forks of a process that has loaded the heavy libraries: as a command alone, but for seconds of imports."""

import multiprocessing
import os
import runpy
import subprocess
import sys
from pathlib import Path

PRELOADED = ["torch", "transformers.models.auto.auto_factory", "pandas"]


def start():
    """A context whose processes are forks of one process, with the environment of the first start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def command(context, module, arguments, folder):
    """Run `python -m MODULE ARGUMENTS` in a folder. Returns what subprocess.run would."""
    process = context.Process(target=_run, args=(module, [str(each) for each in arguments], str(folder)))
    process.start()
    process.join(300)
    assert process.exitcode is not None, f"{module} {arguments} is still at work"
    output, errors = ((Path(folder) / name).read_text() for name in ("stdout.txt", "stderr.txt"))
    return subprocess.CompletedProcess([module, *arguments], process.exitcode, output, errors)


def _run(module, arguments, folder):
    os.chdir(folder)
    for stream, name in ((1, "stdout.txt"), (2, "stderr.txt")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
