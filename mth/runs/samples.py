"""The samples of a run: prompts, replies, rewards and scores, so that one can read what the model writes.

The folder `samples/` of a run holds `step_000030.parquet`, ... with the samples of one step each: of its evaluation and of its rollouts.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mth.config.samples_schema import SamplesConfig
from mth.foundations.errors import UserError, first_line
from mth.foundations.files import atomic, from_json, to_json

EVAL, TRAIN = "eval", "train"
KINDS = (EVAL, TRAIN)


@dataclass(frozen=True)
class Sample:
    """One reply, or one conversation, with what it was worth.

    kind: eval or train. uid: of the episode. reply: index among the replies to this prompt. prompt: as the model read it, special tokens
    visible. turns: the model's reply, the user's next turn, the model's reply, ..., special tokens visible. stop: `stopped` if the model ended
    every reply, `cut` if one reached the token limit. tokens: sampled in all turns. scores: of the task. advantage: in training.
    logprob: mean over the sampled tokens, in nats, as the engine reported it. truth: of the episode. entropy: of the policy, mean over the
    sampled tokens, in nats. In training the update computes it, for replies that it trains. In an evaluation the `hf` engine does; vLLM does not.
    Files of older versions have none.
    """

    step: int
    kind: str
    task: str
    uid: str
    reply: int
    prompt: str
    turns: list[str]
    stop: str
    tokens: int
    reward: float
    scores: dict[str, float]
    advantage: float | None
    logprob: float | None
    truth: list[str]
    entropy: float | None = None


def sample_file(folder: Path, step: int) -> Path:
    """The file of one step's samples."""
    return folder / f"step_{step:06d}.parquet"


def sample_files(folder: Path) -> dict[int, Path]:
    """The files of samples by step, in order."""
    return {int(path.stem.removeprefix("step_")): path for path in sorted(folder.glob("step_*.parquet")) if path.stem[5:].isdigit()}


def _schema() -> Any:
    import pyarrow as pa

    types = {"step": pa.int32(), "reply": pa.int32(), "tokens": pa.int32()}
    types |= dict.fromkeys(("reward", "advantage", "logprob", "entropy"), pa.float64()) | dict.fromkeys(
        ("turns", "truth"), pa.list_(pa.string())
    )
    return pa.schema([(each.name, types.get(each.name, pa.string())) for each in fields(Sample)])


def pack(samples: Sequence[Sample]) -> bytes:
    """Samples as a parquet file, compressed with zstd. The scores are JSON text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{each.name: getattr(sample, each.name) for each in fields(Sample)} | {"scores": to_json(sample.scores)} for sample in samples]
    buffer = io.BytesIO()
    table = pa.Table.from_pylist(rows, _schema())
    pq.write_table(table, buffer, compression="zstd", compression_level=9, write_statistics=False, store_schema=False)
    return buffer.getvalue()


def read_samples(path: Path) -> list[Sample]:
    """The samples of a file. Raises UserError if it is missing, damaged, or no file of samples."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    try:
        table = pq.ParquetFile(io.BytesIO(path.read_bytes())).read(columns=schema.names, use_threads=False)
        if "entropy" not in table.column_names:
            table = table.append_column("entropy", pa.nulls(len(table), pa.float64()))
        table = table.select(schema.names).cast(schema)
        rows = [Sample(**row | {"scores": from_json(row["scores"])}) for row in table.to_pylist()]
        if any(row.kind not in KINDS or not isinstance(row.scores, dict) or row.turns is None or row.truth is None for row in rows):
            raise ValueError("it holds rows that are no samples")
    except FileNotFoundError as error:
        raise UserError(f"samples file {path} does not exist") from error
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"samples file {path} is damaged ({first_line(error, 160)}); remove it to read the others") from error
    return rows


def write_samples(path: Path, content: bytes) -> str | None:
    """Write a file of samples atomically. Returns None, or one line that says why it could not be written: a run goes on without samples."""
    try:
        with atomic(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        return f"samples {path} could not be written ({error})"
    return None


def copy_samples(source: Path, folder: Path, last: int, evaluated: bool) -> None:
    """Copy the samples of steps up to `last` from one folder to another. evaluated: whether the evaluation of `last` is copied too.

    What is damaged or does not fit on the disk is left out.
    """
    for step, path in sample_files(source).items():
        if step > last:
            break
        try:
            kept = [sample for sample in read_samples(path) if sample.kind == TRAIN or step < last or evaluated]
        except UserError:
            continue
        if kept and write_samples(sample_file(folder, step), pack(kept)) is not None:
            break


class SampleStore:
    """Keeps the samples of a run, one file per step. A repeated step replaces its file.

    trained: number of steps already taken; files of later steps are deleted, because these steps will be repeated. The store warns once if
    samples do not fit into `samples.max_mib`, and once if they cannot be written, and goes on.
    """

    def __init__(self, folder: Path, settings: SamplesConfig, trained: int) -> None:
        self.folder, self.settings = folder, settings
        self._said: set[str] = set()
        self._sizes: dict[int, int] = {}
        for step, path in sample_files(folder).items():
            try:
                if step > trained:
                    path.unlink()
                else:
                    self._sizes[step] = path.stat().st_size
            except OSError as error:
                self._warn("old", f"samples {path} cannot be replaced ({error})")

    def add(self, step: int, kind: str, samples: Iterable[Sample]) -> None:
        """Keep the samples of one kind of a step, in place of those that it has. What it has of the other kind stays."""
        added = [replace(sample, step=step) for sample in samples]
        if not added:
            return
        path = sample_file(self.folder, step)
        content = pack(sorted([*added, *self._others(path, step, kind)], key=lambda sample: sample.kind))
        if sum(size for other, size in self._sizes.items() if other != step) + len(content) > self.settings.max_mib * 2**20:
            limit = f"the samples of step {step} do not fit into samples.max_mib={self.settings.max_mib:g} and are left out"
            self._warn("limit", f"{limit}, as will be others; training goes on")
        elif (fault := write_samples(path, content)) is not None:
            self._warn("disk", f"{fault}; training goes on without them")
        else:
            self._sizes[step] = len(content)

    def _others(self, path: Path, step: int, kind: str) -> Iterator[Sample]:
        if step in self._sizes:
            try:
                yield from (sample for sample in read_samples(path) if sample.kind != kind)
            except UserError as error:
                self._warn("damaged", str(error))

    def _warn(self, what: str, line: str) -> None:
        if what not in self._said:
            self._said.add(what)
            tqdm.write(f"warning: {line}")
