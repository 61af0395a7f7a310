"""vLLM in another process, on this machine or another: the calls of `Core` over HTTP. Tensors travel as safetensors, never as pickle.

One request is one call: POST /<method>. The body is a safetensors file. Its metadata holds the other arguments as JSON. The answer is JSON.
"""

import hmac
import json
import os
import secrets
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from mth.foundations.errors import EngineError, UserError, first_line
from mth.rollout.vllm.core import Core, EngineSpec

TOKEN_VARIABLE = "MTH_ENGINE_TOKEN"  # environment variable with a shared secret, needed unless the server listens on loopback
TENSOR_CALLS = ("load_tensors", "set_indices")  # take named tensors
VALUE_CALLS = ("count_matching", "write_values")  # take the ticket's values
CALLS = ("open", *TENSOR_CALLS, *VALUE_CALLS, "generate")


def encode_message(arguments: dict[str, Any], tensors: Mapping[str, torch.Tensor] | None = None) -> bytes:
    """Encode arguments (JSON types) and tensors as one safetensors file."""
    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in (tensors or {}).items()}
    return save(contiguous, {"call": json.dumps({**arguments, "order": list(contiguous)})})


def decode_message(body: bytes) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Decode arguments and tensors, the tensors in the order they were encoded. Raises ValueError for anything else."""
    try:
        tensors = load(body)
        length = int.from_bytes(body[:8], "little")
        arguments = json.loads(json.loads(body[8 : 8 + length])["__metadata__"]["call"])
        return arguments, {name: tensors[name] for name in arguments["order"]}
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"not a message of mth: {error}") from error


class RemoteCore:
    """A Core that a server of `python -m mth.serve` runs. Raises EngineError if the server cannot be reached or fails.

    timeout_s: limit of one call, in seconds.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url, self.timeout_s = url.rstrip("/"), timeout_s
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # ignores http_proxy
        self.run_id = secrets.token_hex(8)  # the server refuses calls from all but the run that opened it last

    def open(self, spec: EngineSpec) -> None:
        """See Core."""
        self._call("open", {"spec": asdict(spec)})

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """See Core."""
        return self._call("load_tensors", {}, tensors)

    def set_indices(self, indices: Mapping[str, torch.Tensor]) -> None:
        """See Core."""
        self._call("set_indices", {}, indices)

    def count_matching(self, values: torch.Tensor) -> dict[str, int]:
        """See Core."""
        return self._call("count_matching", {}, {"values": values})

    def write_values(self, values: torch.Tensor) -> dict[str, int]:
        """See Core."""
        return self._call("write_values", {}, {"values": values})

    def generate(
        self, prompts: Sequence[Sequence[int]], options: dict[str, Any], seeds: Sequence[int]
    ) -> list[tuple[list[int], list[float], bool]]:
        """See Core."""
        arguments = {"prompts": [list(prompt) for prompt in prompts], "options": options, "seeds": list(seeds)}
        return [(ids, logprobs, stopped) for ids, logprobs, stopped in self._call("generate", arguments)]

    def close(self) -> None:
        """Do nothing: the server stays for the next run."""

    def _call(self, name: str, arguments: dict[str, Any], tensors: Mapping[str, torch.Tensor] | None = None) -> Any:
        """Send one call and return its result."""
        body = encode_message({**arguments, "run": self.run_id}, tensors)
        request = urllib.request.Request(f"{self.url}/{name}", body, method="POST")
        request.add_header("Content-Type", "application/octet-stream")
        if os.environ.get(TOKEN_VARIABLE):
            request.add_header("Authorization", f"Bearer {os.environ[TOKEN_VARIABLE]}")
        try:
            with self.opener.open(request, timeout=self.timeout_s) as response:
                return json.load(response)["result"]
        except urllib.error.HTTPError as error:
            with error:
                text = error.read(2000).decode(errors="replace")
            try:
                text = json.loads(text)["error"]
            except (ValueError, KeyError, TypeError):
                text = f"HTTP {error.code}"
            raise EngineError(f"rollout.url={self.url}: {text}") from error
        except (OSError, ValueError) as error:  # refused, reset, timed out, or an incomplete answer
            reason = getattr(error, "reason", None) or error
            raise EngineError(
                f"rollout.url={self.url}: the engine does not answer ({reason}); start it with python -m mth.serve, then continue the run"
            ) from error


class Handler(BaseHTTPRequestHandler):
    """Answers calls, one at a time. `build_server` sets `core` and `token`.

    owner: id of the run that opened the engine last. Only this run may call it.
    """

    core: Core
    token: str | None = None
    owner: str | None = None
    timeout = 600  # seconds that a connection may stay silent

    def do_POST(self) -> None:
        """Run the call that the path names."""
        name = self.path.strip("/")
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.token is not None and not hmac.compare_digest(token.encode(), self.token.encode()):
            return self.send_json(403, {"error": f"wrong or missing token: set {TOKEN_VARIABLE} to the server's"})
        if name not in CALLS:
            return self.send_json(404, {"error": f"unknown call {name}"})
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            arguments, tensors = decode_message(body)
            del body
            return self.send_json(200, {"result": self.dispatch(name, arguments, tensors)})
        except UserError as error:
            return self.send_json(409, {"error": str(error)})
        except Exception as error:  # of the engine: the trainer gets it and stops, the server goes on
            return self.send_json(500, {"error": f"{type(error).__name__}: {first_line(error)}"})

    def dispatch(self, name: str, arguments: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
        """Run a call on the core and return its result. Raises UserError if another run has opened the engine since."""
        kind = type(self)
        if name == "open":
            spec = EngineSpec(**arguments["spec"])
            self.core.open(spec)
            kind.owner = arguments["run"]
            print(f"serving {spec.model_config.get('model_type')} in {spec.dtype}", flush=True)
            return None
        if arguments["run"] != kind.owner:
            raise UserError("another run has opened this engine since; give every run its own server, or continue this one later")
        if name in TENSOR_CALLS:
            return getattr(self.core, name)(tensors)
        if name in VALUE_CALLS:
            return getattr(self.core, name)(tensors["values"])
        return self.core.generate(arguments["prompts"], arguments["options"], arguments["seeds"])

    def send_json(self, status: int, data: dict[str, Any]) -> None:
        """Send a response."""
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the trainer reports what matters."""


def build_server(core: Core, host: str, port: int, token: str | None) -> HTTPServer:
    """Bind a server to host:port (port 0: a free one), without starting it.

    Raises UserError if the address is taken, or if other machines can reach it and there is no token.
    """
    if host not in ("127.0.0.1", "localhost", "::1") and not token:
        raise UserError(
            f"--host {host} can be reached from other machines: set {TOKEN_VARIABLE} to a secret, here and where the run starts"
        )
    handler = type("BoundHandler", (Handler,), {"core": core, "token": token or None})
    try:
        return HTTPServer((host, port), handler)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror or error}; choose another --port") from error
