"""The commands as a user types them: grids, evaluation, export, errors in one line, and an installed wheel in an empty folder."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from mth import load_ticket
from mth.foundations.paths import TINY_MODEL
from mth.foundations.secrets import TOKEN_VARIABLE
from mth.grid.launch import hints
from mth.grid.record import Grid, GridCell
from mth.grid.state import cell_states
from mth.runs.checkpoint import load_checkpoint
from mth.runs.folder import RunFolder
from mth.runs.trackers.mlflow_store import default_uri, mlflow_client
from mth.train import remove_failed_start, report
from mth.training.loop import train
from tests import warm
from tests.conftest import claim, make_config, model_with_damaged_weights

REPOSITORY = Path(__file__).parents[1]
SMALL = [
    "task=arithmetic",
    "task.train_rows=32",
    "train.steps=1",
    "train.batch_size=8",
    "rollout.group_size=4",
    "rollout.max_tokens=16",
    "eval.samples=8",
]


def mth(module, *arguments, cwd, check=True, env=None):
    result = subprocess.run(
        [sys.executable, "-m", f"mth.{module}", *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=300, env=env
    )
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """The README's command, made small: six runs under multirun/."""
    folder = tmp_path_factory.mktemp("user")
    launched = mth("train", "-m", "sparsity=99,99.9", "mask_seed=0,10,42", *SMALL, cwd=folder)
    assert "6 finished, 6 tracked\n" in launched.stdout
    (folder / "launcher.txt").write_text(launched.stdout + launched.stderr)
    return folder


def test_a_grid_as_documented(grid):
    summaries = [json.loads(path.read_text()) for path in sorted(grid.rglob("summary.json")) if "mlartifacts" not in path.parts]
    assert len(summaries) == 6
    assert {s["status"] for s in summaries} == {"finished"}
    assert len({s["mask_sha256"] for s in summaries}) == 6
    assert len({s["active_parameters"] for s in summaries}) == 2
    assert all(path.relative_to(grid).parts[0] == "multirun" for path in grid.rglob("summary.json"))
    client = mlflow_client(default_uri(grid / "multirun"))
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    found = {(r.data.params["sparsity"], r.data.params["mask_seed"], r.info.status) for r in runs}
    assert found == {(s, m, "FINISHED") for s in ("99.0", "99.9") for m in ("0", "10", "42")}
    assert len({r.data.tags["sweep"] for r in runs}) == 1


def first_run(grid):
    return sorted(grid.rglob("summary.json"))[0].parent


def test_logs_hold_lines_and_no_carriage_returns(grid):
    logs = [path.read_bytes().decode() for path in [grid / "launcher.txt", *grid.rglob("log.txt")]]
    assert len(logs) == 7 and not any("\r" in log for log in logs)
    assert "grid: 6 of 6 steps, 6 finished, 00:00 left" in logs[0]
    for log in logs[1:]:
        assert re.search(r"^train: 1 of 1 steps, reward 0\.\d{3}, pass@1 0\.\d{3}, [\d,]+ tokens/s, 00:00 left$", log, re.MULTILINE)


def test_a_start_that_fails_leaves_nothing_that_a_report_would_find(tmp_path):
    """The weights turn out to be damaged once the run has its folder. What lay there before stays."""
    broken = model_with_damaged_weights(tmp_path / "broken")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    result = mth("train", f"model.path={broken}", "model.lr_table=tiny", *SMALL, "run_dir=mine", cwd=tmp_path, check=False)
    assert result.returncode == 2 and "weights cannot be loaded" in result.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_only_the_own_start_is_removed_and_only_if_it_did_nothing(tmp_path):
    folder = RunFolder(tmp_path / "2026-01-01" / "10-00-00")
    claim(folder.path, make_config())
    folder.add_to_record(pid=1)
    remove_failed_start(folder, tmp_path)
    assert folder.exists  # another process has it
    folder.add_to_record(pid=os.getpid())
    folder.journal_file.write_text("{}\n")
    remove_failed_start(folder, tmp_path)
    assert folder.exists  # it has begun
    folder.journal_file.write_text("")
    for file in (folder.mlflow_file, folder.wandb_file, folder.trackers_file):
        file.write_text("{}")
    remove_failed_start(folder, tmp_path)
    assert tmp_path.exists() and not list(tmp_path.iterdir())


def test_a_run_that_learned_nothing_says_why_at_its_end(tmp_path, capsys):
    config = make_config(train={"steps": 1}, rollout={"max_tokens": 1}, eval={"every": 0})
    folder = tmp_path / "run"
    report(train(config, folder, tmp_path), config, folder, tmp_path)
    why = "every reward was 0 in all 1 steps, and 100% of the replies were cut off at rollout.max_tokens=1; raise rollout.max_tokens="
    assert f"hint: {why}\n" in capsys.readouterr().out
    entry = GridCell("a", folder, [], "", {}, "new", 1, ["arithmetic"])
    states = cell_states(Grid(tmp_path, tmp_path, tmp_path / "code", {}, "", [entry, replace(entry, name="b")]))
    assert hints(states) == [f"hint for a, b: {why}"]


def test_evaluate_reads_a_ticket_and_takes_changes(grid):
    run = first_run(grid)
    summary = json.loads((run / "summary.json").read_text())
    same = json.loads(mth("evaluate", f"checkpoint={run}", "--json", cwd=grid).stdout)
    assert same["eval/arithmetic/pass_at_1"] == summary["final"]["arithmetic"]["pass_at_1"]
    other = mth(
        "evaluate",
        f"checkpoint={next((run / 'checkpoints').iterdir())}",
        "task=alphabet_sort",
        "eval.samples=4",
        "eval.temperature=0",
        cwd=grid,
    )
    assert "alphabet_sort" in other.stdout
    assert "arithmetic" not in other.stdout


def test_a_secret_goes_only_to_an_engine_that_the_command_line_names(grid, tmp_path):
    """A checkpoint may be somebody else's, and name somebody else's server."""
    asked = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.headers.get("Authorization"))
            self.send_error(500)

        def log_message(self, *arguments):
            pass

    listener = http.server.HTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{listener.server_port}"
    checkpoint = load_checkpoint(next((first_run(grid) / "checkpoints").iterdir()))
    header = checkpoint.header | {
        "config": checkpoint.header["config"] | {"rollout": checkpoint.header["config"]["rollout"] | {"engine": "vllm_server", "url": url}}
    }
    save_file(checkpoint.tensors, tmp_path / "step_000001.safetensors", {"mth": json.dumps(header)})
    arguments = [f"checkpoint={tmp_path / 'step_000001.safetensors'}"]
    secret = os.environ | {TOKEN_VARIABLE: "hunter2"}
    refused = mth("evaluate", *arguments, cwd=grid, check=False, env=secret)
    assert (refused.returncode, asked) == (2, []), refused.stderr
    assert f"names the engine {url}, which would get MTH_ENGINE_TOKEN: add rollout.url={url}" in refused.stderr
    mth("evaluate", *arguments, f"rollout.url={url}", cwd=grid, check=False, env=secret)
    mth("evaluate", *arguments, cwd=grid, check=False)
    assert asked == ["Bearer hunter2", None]
    listener.shutdown()
    listener.server_close()


def test_export_gives_a_plain_checkpoint_that_evaluates_the_same(grid, tmp_path):
    run = first_run(grid)
    mth("export", run, tmp_path / "merged", cwd=grid)
    assert not list((tmp_path / "merged").glob("*.bin"))
    ticket = json.loads(mth("evaluate", f"checkpoint={run}", "--json", cwd=grid).stdout)
    plain = json.loads(mth("evaluate", f"model.path={tmp_path / 'merged'}", *SMALL, "--json", cwd=grid).stdout)
    assert plain == ticket
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL)
    load_ticket(model, run)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    assert all(torch.equal(tensor, merged[name]) for name, tensor in model.state_dict().items())
    again = mth("export", run, tmp_path / "merged", cwd=grid, check=False)
    assert again.returncode == 2
    assert "is not empty" in again.stderr


@pytest.fixture(scope="module")
def loaded():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield warm.start()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sparsity=100"], "sparsity.percent=100"),
        (["train.batch_size=30"], "train.batch_size=30 must be a multiple"),
        (["trian.steps=1"], "trian"),
        (["run_dir=${HOME}/x"], '${HOME}: there is no key HOME; the shell fills in its variable between double quotes: "${HOME}"'),
        (["eval.tasks=[arithmetic"], "eval.tasks=[arithmetic cannot be read: a ] is missing; type 'eval.tasks=[arithmetic]'"),
        (["task=chess"], "chess"),
        (["sparsity=99.99999"], "leaves no active entry"),
        (["model.path=./nowhere", "lr=1e-3"], "nowhere"),
        (["task=gsm8k", "task.path=./nowhere.jsonl"], "does not exist"),
        (["resume=true"], "no unfinished run"),
        (["-m", "mask_seed=0,1", "sparsity=99.99999"], "leaves no active entry"),
        (["-m", "hydra/launcher=slurm", "hydra.launcher.partitio=gpu"], "hydra.launcher.partitio: there is no such key"),
        (["hydra/launcher=slurm"], "add -m"),
        (["-m", "hydra/launcher=basic"], "hydra/launcher= must be one of local, slurm"),
        (["-m", "hydra.launcher.jobs=0"], "hydra.launcher.jobs=0 must be at least 1"),
        (["experiment=nothere"], "nothere"),
        (["model.path=./nowhere"], "lr=..."),
        (["-m", "sparsity=dense,99"], "not a mixture"),
        (["-m", "sparsity=99,100"], "sparsity.percent=100 must be in [0, 100) (in the cell"),
        (["rollout.max_tokens=1024"], "rollout.max_tokens=1024 leaves no room"),
        (
            ["eval.tasks=[arithmetic]", "eval.per_task.arithmetic.max_tokens=2000"],
            "eval.per_task.arithmetic.max_tokens=2000 leaves no room",
        ),
        (["rollout=vllm", "rollout.context=32", "rollout.max_tokens=32"], "rollout.max_tokens=32 leaves no room"),
        (["task.train_rows=4", "task.name=arithmetic"], "fewer than the 16 prompts of a step"),
        (["run_dir=/dev/null"], "/dev/null"),
    ],
)
def test_bad_input_is_one_line_without_a_traceback(loaded, tmp_path, arguments, message):
    result = warm.command(loaded, "mth.train", arguments, tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.rglob("summary.json"))


def test_a_checkpoint_of_another_configuration_is_refused_and_kept(grid):
    run = first_run(grid)
    before = (next((run / "checkpoints").iterdir())).read_bytes()
    settings = (run / "config.yaml").read_bytes()
    result = mth("train", f"run_dir={run}", "sparsity=99", "mask_seed=5", *SMALL, cwd=grid, check=False)
    assert result.returncode == 2
    assert "another configuration: mask_seed (0, here 5)" in result.stderr
    assert next((run / "checkpoints").iterdir()).read_bytes() == before
    assert (run / "config.yaml").read_bytes() == settings
    assert load_checkpoint(next((run / "checkpoints").iterdir())).config.mask_seed == 0
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("module", ["train", "evaluate", "export", "pretrain"])
def test_help(module, tmp_path):
    assert f"python -m mth.{module}" in mth(module, "--help", cwd=tmp_path).stdout


def test_pretrain_makes_a_model_that_trains(tmp_path):
    small = ["steps=3", "batch_size=2", "hidden_size=64", "layers=1", "intermediate_size=64", "check_every=3"]
    mth("pretrain", "out=base", *small, cwd=tmp_path)
    made = json.loads((tmp_path / "base" / "pretraining.json").read_text())
    assert made["config"]["steps"] == 3
    mth("train", "model.path=base", "model.lr_table=tiny", *SMALL, cwd=tmp_path)


def test_an_installed_wheel_works_from_an_empty_folder(tmp_path):
    wheels, site, empty = (tmp_path / name for name in ("wheels", "site", "empty"))
    empty.mkdir()
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", wheels, REPOSITORY], check=True)
    (wheel,) = wheels.glob("*.whl")
    assert wheel.stat().st_size < 9 * 2**20
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    where = mth("train", "--cfg", "job", cwd=empty, env=os.environ | {"PYTHONPATH": str(site)})
    assert "percent: 99" in where.stdout
    code = "import mth, mth.foundations.paths as p; print(mth.__file__); print(p.conf_dir())"
    found = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=empty,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(line.startswith(str(site)) for line in found.stdout.split())
    mth("train", *SMALL, cwd=empty, env=os.environ | {"PYTHONPATH": str(site)})
