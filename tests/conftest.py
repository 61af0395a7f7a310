"""Shared fixtures: a model small enough for unit tests, the real shapes of Qwen2.5, and the rule that nothing skips in CI."""

import importlib.util
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from mth.config.schema import Config, ModelConfig
from mth.config.stored import from_plain, to_plain
from mth.foundations.paths import TINY_MODEL
from mth.models.load import Policy
from mth.models.tokenizer import load_tokenizer
from mth.runs.lock import lock_run

# verifiers cannot be installed beside vLLM: `make test` runs its tests in an environment of its own.
collect_ignore = [] if importlib.util.find_spec("verifiers") else ["tasks/test_verifiers.py"]


def pytest_collection_modifyitems(items):
    torch.set_num_threads(2)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """A test marked `cpu`, its fixtures and its processes find no GPU, also on a machine that has one."""
    if item.get_closest_marker("cpu") is None:
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setattr(torch.cuda, "is_available", lambda: False)
        return (yield)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Where CI is set, a skip for a missing component is a failure."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"


def make_config(**sections) -> Config:
    """A small valid Config; keyword arguments replace keys of sections, e.g. train={"steps": 3}."""
    data = to_plain(Config())
    small = {
        "task": {"name": "arithmetic", "train_rows": 64},
        "train": {"steps": 3, "batch_size": 16},
        "rollout": {"group_size": 4, "max_tokens": 24},
        "eval": {"samples": 16, "every": 2, "tasks": None, "max_tokens": None},
        "checkpoints": {"every": 1, "keep": 2},
        "tracker": {"name": "none"},
        "lr": {"value": 5e-3},
    }
    for part in (small, sections):
        for key, value in part.items():
            data[key] = data[key] | value if isinstance(value, dict) else value
    return from_plain(data)


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer(ModelConfig())


@pytest.fixture
def small_model(tokenizer):
    torch.manual_seed(0)
    shape = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(shape).eval()


@pytest.fixture
def small_policy(small_model, tokenizer):
    return Policy(small_model, tokenizer, frozenset(tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])))


_begun: list[subprocess.Popen] = []


def begin(command, **settings):
    """A process that ends with the test that has begun it at the latest, and all of its children with it."""
    process = subprocess.Popen(list(map(str, command)), start_new_session=True, **settings)
    _begun.append(process)
    return process


@pytest.fixture(autouse=True)
def end_processes(request):
    """Ends what the test has begun, whether it fails or not, and what runs in the test's own folder."""
    folder = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    yield
    while _begun:
        process = _begun.pop()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    if folder is not None:
        end_all_below(folder)


def end_all_below(folder):
    """Ends processes that work in this folder or name it: cells of grids have sessions of their own and outlive their launcher."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            named = f"{folder}/".encode() in (process / "cmdline").read_bytes() or (process / "cwd").readlink().is_relative_to(folder)
            if named and int(process.name) != os.getpid():
                os.kill(int(process.name), signal.SIGKILL)


def claim(path, config):
    """Make a run folder of this configuration, as a run that has just started does."""
    with lock_run(path, config):
        pass


def model_with_damaged_weights(folder):
    """A copy of the embedded model that passes every check before a run starts, and cannot be loaded."""
    shutil.copytree(TINY_MODEL, folder)
    (folder / "model.safetensors").write_bytes(b"cut short")
    return folder
