"""The engine in another process, on this machine or another: the six calls of `Core` over HTTP, tensors as safetensors, never pickle.

One request is one call: POST /<name>, the body a safetensors file whose metadata holds the remaining arguments as JSON; the answer is JSON.
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

from mth.errors import EngineError, UserError
from mth.rollout.core import Core, EngineSpec

TOKEN = "MTH_ENGINE_TOKEN"  # environment variable with a shared secret; a server that is not on loopback needs it
CALLS = ("open", "load", "place", "held", "write", "generate")


def pack(call: dict[str, Any], tensors: Mapping[str, torch.Tensor] | None = None) -> bytes:
    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in (tensors or {}).items()}
    return save(contiguous, {"call": json.dumps({**call, "order": list(contiguous)})})


def unpack(body: bytes) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Arguments and tensors, the tensors in the order they were sent. Raises ValueError for anything that is not such a message."""
    try:
        tensors = load(body)
        length = int.from_bytes(body[:8], "little")
        call = json.loads(json.loads(body[8 : 8 + length])["__metadata__"]["call"])
        return call, {name: tensors[name] for name in call["order"]}
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"not a message of mth: {error}") from error


class RemoteCore:
    """A Core that a server of `python -m mth.serve` runs. Raises EngineError when it cannot be reached or fails."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url, self.timeout_s = url.rstrip("/"), timeout_s
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # straight there, whatever http_proxy says
        self.run = secrets.token_hex(8)  # names this trainer; a server that was taken over refuses it

    def open(self, spec: EngineSpec) -> None:
        self._call("open", {"spec": asdict(spec)})

    def load(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
        return self._call("load", {}, tensors)

    def place(self, indices: Mapping[str, torch.Tensor]) -> None:
        self._call("place", {}, indices)

    def held(self, values: torch.Tensor) -> dict[str, int]:
        return self._call("held", {}, {"values": values})

    def write(self, values: torch.Tensor) -> dict[str, int]:
        return self._call("write", {}, {"values": values})

    def generate(
        self, prompts: Sequence[Sequence[int]], options: dict[str, Any], seeds: Sequence[int]
    ) -> list[tuple[list[int], list[float], bool]]:
        call = {"prompts": [list(prompt) for prompt in prompts], "options": options, "seeds": list(seeds)}
        return [(ids, logprobs, stopped) for ids, logprobs, stopped in self._call("generate", call)]

    def close(self) -> None:
        """The server stays, for the next run."""

    def _call(self, name: str, call: dict[str, Any], tensors: Mapping[str, torch.Tensor] | None = None) -> Any:
        request = urllib.request.Request(f"{self.url}/{name}", pack({**call, "run": self.run}, tensors), method="POST")
        request.add_header("Content-Type", "application/octet-stream")
        if os.environ.get(TOKEN):
            request.add_header("Authorization", f"Bearer {os.environ[TOKEN]}")
        try:
            with self.opener.open(request, timeout=self.timeout_s) as answer:
                return json.load(answer)["result"]
        except urllib.error.HTTPError as error:
            with error:
                text = error.read(2000).decode(errors="replace")
            try:
                text = json.loads(text)["error"]
            except (ValueError, KeyError, TypeError):
                text = f"HTTP {error.code}"
            raise EngineError(f"rollout.url={self.url}: {text}") from error
        except (OSError, ValueError) as error:  # refused, reset, timed out, or half an answer
            reason = getattr(error, "reason", None) or error
            raise EngineError(
                f"rollout.url={self.url}: the engine does not answer ({reason}); start it with python -m mth.serve, then continue the run"
            ) from error


class Handler(BaseHTTPRequestHandler):
    """Answers one call. Requests come one after another: there is one engine."""

    core: Core
    token: str | None = None
    owner: str | None = None
    timeout = 600  # seconds that a connection may stay silent

    def do_POST(self) -> None:
        """Run the call that the path names."""
        name = self.path.strip("/")
        sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.token is not None and not hmac.compare_digest(sent.encode(), self.token.encode()):
            return self.answer(403, {"error": f"wrong or missing token: set {TOKEN} to the server's"})
        if name not in CALLS:
            return self.answer(404, {"error": f"unknown call {name}"})
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            call, tensors = unpack(body)
            del body
            return self.answer(200, {"result": self.dispatch(name, call, tensors)})
        except UserError as error:
            return self.answer(409, {"error": str(error)})
        except Exception as error:  # the engine's own: the trainer is told and stops, the server stays
            return self.answer(
                500, {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"}
            )

    def dispatch(self, name: str, call: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
        """The result of a call. The run that opened the engine last owns it."""
        kind = type(self)
        if name == "open":
            self.core.open(EngineSpec(**call["spec"]))
            kind.owner = call["run"]
            print(f"serving {call['spec']['shape'].get('model_type')} in {call['spec']['dtype']}", flush=True)
            return None
        if call["run"] != kind.owner:
            raise UserError("another run has opened this engine since; give every run its own server, or continue this one later")
        if name in ("load", "place"):
            return getattr(self.core, name)(tensors)
        if name in ("held", "write"):
            return getattr(self.core, name)(tensors["values"])
        return self.core.generate(call["prompts"], call["options"], call["seeds"])

    def answer(self, status: int, data: dict[str, Any]) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: the trainer reports what matters."""


def build_server(core: Core, host: str, port: int, token: str | None) -> HTTPServer:
    """A server bound to host:port (0: a free one), not yet running. Raises UserError for an open address without a token."""
    if host not in ("127.0.0.1", "localhost", "::1") and not token:
        raise UserError(f"--host {host} can be reached from other machines: set {TOKEN} to a secret, here and where the run starts")
    handler = type("BoundHandler", (Handler,), {"core": core, "token": token or None})
    try:
        return HTTPServer((host, port), handler)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror or error}; choose another --port") from error
