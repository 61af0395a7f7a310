"""The protocol between a run and an engine in another process, with an engine that only records its calls."""

import http.server
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest
import torch

from mth.foundations.errors import EngineError, UserError
from mth.foundations.secrets import TOKEN_VARIABLE
from mth.rollout.vllm import server as server_module
from mth.rollout.vllm.core import EngineSpec
from mth.rollout.vllm.remote import CONTENT_TYPE, RemoteCore, decode_message, encode_message
from mth.rollout.vllm.server import MOST_BYTES, MOST_BYTES_OPEN, build_server

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
        threading.Thread(target=server.run, daemon=True).start()
        return core, f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.stop()
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
            urllib.request.urlopen(urllib.request.Request(f"{url}/{path}", body, {"Content-Type": CONTENT_TYPE}), timeout=10)
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


def raw(url, text, wait=True):
    """Send bytes to the server's port; what it answers."""
    host, _, port = url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    connection.sendall(text.encode())
    if not wait:
        return connection
    with connection:
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer.decode()


def head(path="open", **headers):
    lines = {"Content-Type": CONTENT_TYPE, "Content-Length": "0"} | {key.replace("_", "-"): value for key, value in headers.items()}
    return f"POST /{path} HTTP/1.0\r\n" + "".join(f"{key}: {value}\r\n" for key, value in lines.items() if value is not None) + "\r\n"


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (head(Origin="https://elsewhere.example"), 403),
        (head(Origin="null"), 403),
        (head(Content_Type="text/plain"), 415),
        (head(Content_Type="application/x-www-form-urlencoded"), 415),
        (head(Content_Length=None), 411),
        (head(Content_Length="-1"), 411),
        (head(Content_Length="1e9"), 411),
        (head(Content_Length=str(MOST_BYTES_OPEN + 1)), 413),
        (head("load_tensors", Content_Length=str(MOST_BYTES + 1)), 413),
        (head("load_tensors", Content_Length="9" * 5000), 413),
        (head("../../etc/passwd"), 404),
        ("GET /open HTTP/1.0\r\n\r\n", 501),
    ],
)
def test_hostile_requests_are_refused_before_anything_is_read(serve, request_head, status):
    core, url = serve()
    assert raw(url, request_head).split()[1] == str(status)
    assert core.seen == []
    RemoteCore(url, 10).open(SPEC)


def test_silent_and_half_sent_connections_block_nobody(serve, monkeypatch):
    monkeypatch.setattr(server_module.Handler, "timeout", 1)
    core, url = serve()
    silent = [
        raw(url, "", wait=False),
        raw(url, "POST /open HT", wait=False),
        raw(url, head("load_tensors", Content_Length="999999"), wait=False),
    ]
    start = time.monotonic()
    RemoteCore(url, 10).open(SPEC)
    assert time.monotonic() - start < 1, "a silent connection was waited for"
    time.sleep(1.5)
    for connection in silent:
        with connection:
            connection.settimeout(5)
            said = connection.recv(65536)
            assert said == b"" or said.split()[1] == b"400", "the connection is still open"
    assert core.seen == [SPEC]


def test_an_announced_body_is_not_waited_for(serve):
    """16 GiB are announced and nothing is sent."""
    _, url = serve()
    with raw(url, head("load_tensors", Content_Length=str(MOST_BYTES)), wait=False):
        remote = RemoteCore(url, 10)
        remote.open(SPEC)
        assert remote.load_tensors({"a": torch.zeros(1)}) == {"a": 1}


def test_a_redirection_gets_neither_token_nor_weights(serve, monkeypatch):
    asked = []

    class Redirect(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.path)
            self.send_response(302)
            self.send_header("Location", f"{target}/open")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *arguments):
            pass

    core, target = serve()
    redirect = http.server.HTTPServer(("127.0.0.1", 0), Redirect)
    threading.Thread(target=redirect.serve_forever, daemon=True).start()
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    with pytest.raises(EngineError, match="HTTP 302"):
        RemoteCore(f"http://127.0.0.1:{redirect.server_port}", 10).open(SPEC)
    redirect.shutdown()
    redirect.server_close()
    assert (asked, core.seen) == (["/open"], [])


def test_calls_run_one_after_another_in_one_thread(serve):
    """An engine binds its threads to the one that made it."""
    core, url = serve()
    threads = []
    core.open = lambda spec: threads.append(threading.get_ident())
    callers = [threading.Thread(target=RemoteCore(url, 10).open, args=(SPEC,)) for _ in range(5)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(threads) == 5 and len(set(threads)) == 1
