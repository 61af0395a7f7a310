"""Answers the calls of mth.rollout.vllm.remote with an engine in this process.

Whoever reaches the port may send anything. A connection has a thread of its own and a time limit, so that a silent one blocks nobody. The
engine runs in one thread, one call after another. A web page of another origin cannot make calls: a browser sends its origin along.
"""

import hmac
import json
import queue
import threading
from concurrent.futures import Future
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from mth.foundations.errors import UserError, first_line
from mth.foundations.secrets import TOKEN_VARIABLE
from mth.rollout.vllm.core import Core, EngineSpec
from mth.rollout.vllm.remote import CALLS, CONTENT_TYPE, TENSOR_CALLS, VALUE_CALLS, decode_message

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SILENT_S = 60  # seconds that a connection may stay silent while it sends a call
MOST_BYTES = 2**34  # of a call's body; a chunk of weights is one tensor, or several of together 256 MiB
MOST_BYTES_OPEN = 2**20  # of the first call's, which holds a configuration
PIECE_BYTES = 2**20  # read at a time: memory grows with what is sent, not with what is announced

Call = tuple[str, bytes, "Future[Any]"]


class EngineServer(ThreadingHTTPServer):
    """Serves `core` on an address. token: what a call must know, or None.

    owner: id of the run that opened the engine last. Only this run may call it.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int], core: Core, token: str | None) -> None:
        super().__init__(address, Handler)
        self.core, self.token = core, token
        self.owner: str | None = None
        self.calls: queue.Queue[Call | None] = queue.Queue()

    def run(self) -> None:
        """Answer calls until `stop`. The engine runs in the calling thread."""
        acceptor = threading.Thread(target=self.serve_forever, name="acceptor", daemon=True)
        acceptor.start()
        try:
            while (call := self.calls.get()) is not None:
                name, body, answer = call
                try:
                    arguments, tensors = decode_message(body)
                    del call, body
                    answer.set_result(self.dispatch(name, arguments, tensors))
                except Exception as error:  # of the engine: the trainer gets it and stops, the server goes on
                    answer.set_exception(error)
        finally:
            self.shutdown()
            acceptor.join()

    def stop(self) -> None:
        """End `run` after the calls that wait."""
        self.calls.put(None)

    def dispatch(self, name: str, arguments: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
        """Run a call on the core and return its result. Raises UserError if another run has opened the engine since."""
        if name == "open":
            spec = EngineSpec(**arguments["spec"])
            self.core.open(spec)
            self.owner = arguments["run"]
            print(f"serving {spec.model_config.get('model_type')} in {spec.dtype}", flush=True)
            return None
        if arguments["run"] != self.owner:
            raise UserError("another run has opened this engine since; give every run its own server, or continue this one later")
        if name in TENSOR_CALLS:
            return getattr(self.core, name)(tensors)
        if name in VALUE_CALLS:
            return getattr(self.core, name)(tensors["values"])
        return self.core.generate(arguments["prompts"], arguments["options"], arguments["seeds"])


class Handler(BaseHTTPRequestHandler):
    """Takes one call from a connection and waits for its answer."""

    server: EngineServer
    timeout = SILENT_S

    def do_POST(self) -> None:
        """Answer the call that the path names."""
        if (refusal := self.refusal()) is not None:
            self.close_connection = True
            return self.send_json(*refusal)
        body = self.read_body(int(self.headers["Content-Length"]))
        if body is None:
            return self.send_json(400, {"error": "the body is shorter than Content-Length"})
        answer: Future[Any] = Future()
        self.server.calls.put((self.path.strip("/"), body, answer))
        del body
        try:
            return self.send_json(200, {"result": answer.result()})
        except UserError as error:
            return self.send_json(409, {"error": str(error)})
        except Exception as error:
            return self.send_json(500, {"error": f"{type(error).__name__}: {first_line(error)}"})

    def refusal(self) -> tuple[int, dict[str, str]] | None:
        """Status and error of a call that is refused before its body is read; None if there is nothing against it."""
        name, length, token = self.path.strip("/"), self.headers.get("Content-Length", ""), self.server.token
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        most = MOST_BYTES_OPEN if name == "open" else MOST_BYTES
        if "Origin" in self.headers:
            return 403, {"error": "calls from web pages are refused"}
        if token is not None and not hmac.compare_digest(given.encode(), token.encode()):
            return 403, {"error": f"wrong or missing token: set {TOKEN_VARIABLE} to the server's"}
        if name not in CALLS:
            return 404, {"error": f"unknown call {name[:40]}"}
        if self.headers.get("Content-Type") != CONTENT_TYPE:
            return 415, {"error": f"a call is {CONTENT_TYPE}"}
        if not (length.isascii() and length.isdecimal()):
            return 411, {"error": "Content-Length is missing or no number"}
        if len(length) > 20 or int(length) > most:
            return 413, {"error": f"a body of {length[:20]} bytes is more than the {most:,} that a call may have"}
        return None

    def read_body(self, length: int) -> bytes | None:
        """Read so many bytes; None if the connection ends or falls silent before."""
        body = bytearray()
        with suppress(OSError):
            while len(body) < length and (piece := self.rfile.read(min(PIECE_BYTES, length - len(body)))):
                body += piece
        return bytes(body) if len(body) == length else None

    def send_json(self, status: int, data: dict[str, Any]) -> None:
        """Send a response, unless nobody waits for it any more."""
        body = json.dumps(data).encode()
        with suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the trainer reports what matters."""


def build_server(core: Core, host: str, port: int, token: str | None) -> EngineServer:
    """Bind a server to host:port (port 0: a free one), without starting it.

    Raises UserError if the address is taken, or if other machines can reach it and there is no token.
    """
    if host not in LOOPBACK and not token:
        raise UserError(
            f"--host {host} can be reached from other machines: set {TOKEN_VARIABLE} to a secret, here and where the run starts"
        )
    try:
        return EngineServer((host, port), core, token or None)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror or error}; choose another --port") from error
