"""vLLM in another process, on this machine or another: the calls of `Core` over HTTP, as the run makes them. mth.rollout.vllm.server answers.

Tensors travel as safetensors, never as pickle. One request is one call: POST /<method>. The body is a safetensors file. Its metadata holds the other arguments as JSON. The answer is JSON.
"""

import json
import os
import secrets
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from mth.foundations.errors import EngineError
from mth.foundations.secrets import TOKEN_VARIABLE
from mth.rollout.vllm.core import EngineSpec, Reply, Told

TENSOR_CALLS = ("load_tensors", "set_indices")  # take named tensors
VALUE_CALLS = ("count_matching", "write_values")  # take the ticket's values
CALLS = ("open", *TENSOR_CALLS, *VALUE_CALLS, "generate")
CONTENT_TYPE = "application/octet-stream"


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


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Takes a redirection as an error: the weights and the token are for the address that was given."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


class RemoteCore:
    """A Core that a server of `python -m mth.serve` runs. Raises EngineError if the server cannot be reached or fails.

    timeout_s: limit of one call, in seconds.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url, self.timeout_s = url.rstrip("/"), timeout_s
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), NoRedirect())  # ignores http_proxy
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
        self, prompts: Sequence[Sequence[int]], options: dict[str, Any], seeds: Sequence[int], told: Told | None = None
    ) -> list[Reply]:
        """See Core. All replies come at once: `told` is not called."""
        arguments = {"prompts": [list(prompt) for prompt in prompts], "options": options, "seeds": list(seeds)}
        return [(ids, logprobs, stopped) for ids, logprobs, stopped in self._call("generate", arguments)]

    def close(self) -> None:
        """Do nothing: the server stays for the next run."""

    def _call(self, name: str, arguments: dict[str, Any], tensors: Mapping[str, torch.Tensor] | None = None) -> Any:
        """Send one call and return its result."""
        body = encode_message({**arguments, "run": self.run_id}, tensors)
        request = urllib.request.Request(f"{self.url}/{name}", body, method="POST")
        request.add_header("Content-Type", CONTENT_TYPE)
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
