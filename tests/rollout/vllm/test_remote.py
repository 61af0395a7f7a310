"""The protocol between a run and an engine in another process, with an engine that only records its calls."""

import threading
import urllib.error
import urllib.request

import pytest
import torch

from mth.foundations.errors import EngineError, UserError
from mth.rollout.vllm.core import EngineSpec
from mth.rollout.vllm.remote import TOKEN_VARIABLE, RemoteCore, build_server, decode_message, encode_message

SPEC = EngineSpec({"model_type": "qwen2", "hidden_size": 64}, "float32", 128, 8, 0.4, None)


class RecordingCore:
    """A Core that records what reaches it."""

    def __init__(self):
        self.seen = []

    def open(self, spec):
        self.seen.append(spec)

    def load_tensors(self, tensors):
        self.seen.append(tensors)
        return {name: tensor.numel() for name, tensor in tensors.items()}

    set_indices = count_matching = write_values = load_tensors

    def generate(self, prompts, options, seeds):
        if options.get("fail"):
            raise RuntimeError("kernel died\nat line 3")
        return [([1, 2], [-0.5, -0.25], True) for _ in prompts]


@pytest.fixture
def serve():
    servers = []

    def start(token=None):
        core = RecordingCore()
        server = build_server(core, "127.0.0.1", 0, token)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return core, f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_tensors_arrive_bit_for_bit_and_in_order(serve):
    core, url = serve()
    remote = RemoteCore(url, 10)
    remote.open(SPEC)
    tensors = {"z": torch.randn(3, 4), "a": torch.randn(5).bfloat16(), "m": torch.arange(4, dtype=torch.int32), "t": torch.randn(4, 3).T}
    assert remote.load_tensors(tensors) == {"z": 12, "a": 5, "m": 4, "t": 12}
    assert core.seen[0] == SPEC
    assert list(core.seen[1]) == list(tensors)
    assert all(torch.equal(core.seen[1][name], tensor) and core.seen[1][name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert remote.generate([[1, 2]], {"max_tokens": 3}, [2**63 - 1]) == [([1, 2], [-0.5, -0.25], True)]


def test_a_proxy_of_the_environment_is_not_asked(serve, monkeypatch):
    _, url = serve()
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    RemoteCore(url, 10).open(SPEC)


def test_the_run_that_opened_last_owns_the_engine(serve):
    _, url = serve()
    first, second = RemoteCore(url, 10), RemoteCore(url, 10)
    with pytest.raises(EngineError, match="another run"):
        first.generate([[1]], {}, [1])
    first.open(SPEC)
    second.open(SPEC)
    with pytest.raises(EngineError, match="another run has opened this engine"):
        first.load_tensors({"a": torch.zeros(1)})
    assert second.load_tensors({"a": torch.zeros(1)}) == {"a": 1}


def test_failures_arrive_as_one_line_and_the_server_lives_on(serve):
    _, url = serve()
    remote = RemoteCore(url, 10)
    remote.open(SPEC)
    with pytest.raises(EngineError, match=r"RuntimeError: kernel died$"):
        remote.generate([[1]], {"fail": True}, [1])
    empty = encode_message({})
    for path, body in (("load_tensors", b"not safetensors"), ("load_tensors", empty[:-1]), ("load_tensors", b""), ("close", empty)):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{url}/{path}", body, timeout=10)
    assert remote.load_tensors({"a": torch.zeros(1)}) == {"a": 1}


def test_nobody_there():
    with pytest.raises(EngineError, match=r"rollout.url=http://127.0.0.1:9: the engine does not answer .* python -m mth.serve"):
        RemoteCore("http://127.0.0.1:9/", 5).open(SPEC)


def test_a_token_is_asked_for_and_needed_off_loopback(serve, monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    _, url = serve("secret")
    with pytest.raises(EngineError, match="wrong or missing token"):
        RemoteCore(url, 10).open(SPEC)
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    RemoteCore(url, 10).open(SPEC)
    with pytest.raises(UserError, match=f"can be reached from other machines: set {TOKEN_VARIABLE}"):
        build_server(RecordingCore(), "0.0.0.0", 0, None)


def test_a_message_without_tensors():
    assert decode_message(encode_message({"a": [1]})) == ({"a": [1], "order": []}, {})
