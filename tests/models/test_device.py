"""The device of a model: no silent CPU, what torch is told before it uses a GPU, and errors of a GPU in one line."""

import os

import pytest
import torch

from mth.config.cells import Cell
from mth.config.choices import Init
from mth.config.identity import identity
from mth.config.schema import ModelConfig
from mth.foundations.errors import UserError
from mth.foundations.paths import TINY_MODEL
from mth.grid.capacity import place_on_devices
from mth.grid.memory import ModelFacts
from mth.models.device import device_record, named_gpu_errors, prepare_device, resolve_device
from mth.models.load import load_policy
from mth.runs.folder import RunFolder
from mth.training.loop import train
from tests.conftest import make_config
from tests.pretend_cuda import DEVICE, pretended_gpu


@pytest.fixture
def gpu(monkeypatch):
    for name in ("CUBLAS_WORKSPACE_CONFIG", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")  # is restored at the end
        monkeypatch.delenv(name)
    with pretended_gpu():
        yield monkeypatch


@pytest.mark.cpu
def test_a_large_model_is_not_trained_on_a_cpu_by_mistake():
    assert resolve_device("auto", lambda: 300_000_000).type == "cpu"
    for call in (
        lambda: resolve_device("auto", lambda: 300_000_001),
        lambda: load_policy(ModelConfig(name="qwen2.5-0.5b", path="none", init=Init.random, tokenizer=str(TINY_MODEL))),
    ):
        with pytest.raises(
            UserError, match=r"no GPU is visible to torch, and this model has \d+ million parameters; give model.device=cpu"
        ):
            call()
    assert resolve_device("cpu", lambda: 10**12).type == "cpu"
    with pytest.raises(UserError, match=r"no GPU is visible to torch; use model.device=cpu"):
        resolve_device("cuda:1")


@pytest.mark.cpu
def test_cells_of_large_models_ask_slurm_for_a_gpu():
    def gpus(parameters, device="auto", **launcher):
        config = make_config(model={"device": device})
        (cell,) = place_on_devices([Cell((), "", config, launcher)], {repr(config.model): ModelFacts({"w": (parameters,)}, None)})
        return cell.launcher.get("gpus_per_node")

    large, small, slurm = 494_032_768, 1_791_104, {"kind": "slurm", "gpus_per_node": None}
    assert [gpus(large, **slurm), gpus(large, "cuda", **slurm), gpus(small, "cuda", **slurm)] == [1, 1, 1]
    assert [gpus(large, **slurm | {"gpus_per_node": given}) for given in (0, 2)] == [0, 2]
    assert [gpus(small, **slurm), gpus(large, "cpu", **slurm), gpus(large, "cpu", kind="local")] == [None, None, None]
    with pytest.raises(UserError, match=r"model.device=cpu if that is meant"):
        gpus(large, kind="local")


def test_a_gpu_repeats_its_bits_unless_it_is_told_not_to(gpu):
    config = make_config()
    prepare_device(DEVICE, True)
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert (os.environ["CUBLAS_WORKSPACE_CONFIG"], os.environ["PYTORCH_ALLOC_CONF"]) == (":4096:8", "expandable_segments:True")
    assert device_record(DEVICE) == {"name": "cuda:0 (pretended GPU)", "deterministic": True}
    config.model.deterministic = False
    assert identity(config) == identity(make_config())
    prepare_device(DEVICE, False)
    assert device_record(DEVICE)["deterministic"] is False


def test_a_gpu_named_by_its_number_is_the_current_one(gpu):
    """CUDA graphs would else be captured on the first GPU: empty, without an error."""
    current = []
    with gpu.context() as patch:
        patch.setattr(torch.cuda, "set_device", current.append)
        for name in ("cuda:1", "cuda", "cpu"):
            prepare_device(torch.device(name), True)
    assert current == [torch.device("cuda", 1)]


def test_a_gpu_that_is_not_there_is_named(gpu):
    assert [resolve_device(name).index for name in ("auto", "cuda", "cuda:0")] == [None, None, 0]
    with pytest.raises(UserError, match=r"model.device=cuda:1, but torch sees 1 GPUs; leave the key at auto"):
        resolve_device("cuda:1")


def test_what_the_user_has_set_stays(gpu):
    gpu.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    gpu.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    prepare_device(DEVICE, True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert "PYTORCH_ALLOC_CONF" not in os.environ


@pytest.mark.cpu
def test_a_cpu_is_left_alone_and_recorded(tmp_path, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    train(make_config(train={"steps": 1, "batch_size": 4}, eval={"samples": 2, "every": 0}), tmp_path / "run", tmp_path)
    assert RunFolder(tmp_path / "run").record()["device"] == {"name": "cpu"}
    assert not torch.are_deterministic_algorithms_enabled() and "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_errors_of_a_gpu_name_the_key():
    def failing(error):
        with named_gpu_errors():
            raise error

    with pytest.raises(UserError, match=r"the GPU's memory is full \(CUDA out of memory.*\); lower train.micro_batch_tokens"):
        failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"))
    message = "put_ does not have a deterministic implementation, but you set 'torch.use_deterministic_algorithms(True)'."
    with pytest.raises(UserError, match=r"model.deterministic=true: put_ does not .*; give model.deterministic=false"):
        failing(RuntimeError(message))
    with pytest.raises(RuntimeError, match=r"^other$"):
        failing(RuntimeError("other"))
