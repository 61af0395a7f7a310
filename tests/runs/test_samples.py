"""The samples of a run: what is kept, that it costs no bit of training, resume, limits, and files that are damaged."""

import errno
import itertools
import json
import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mth.config.identity import identity, prefix_identity
from mth.config.samples_schema import SamplesConfig
from mth.foundations.errors import EngineError, UserError
from mth.rollout.hf.engine import HfEngine
from mth.rollout.player import Rollout
from mth.runs import samples as samples_module
from mth.runs.checkpoint import checkpoint_path, checkpoints_of, load_checkpoint
from mth.runs.folder import RunFolder
from mth.runs.journal import Journal, read_journal
from mth.runs.samples import Sample, SampleStore, copy_samples, pack, read_samples, sample_file, sample_files
from mth.tasks.base import Episode
from mth.training.loop import train
from mth.training.samples import eval_samples, train_samples
from tests.conftest import make_config
from tests.training.test_loop import repeatable

CONFIG = make_config()


def sample(step=0, kind="eval", **changes):
    one = Sample(step, kind, "arithmetic", "problem1", 0, "1+1?", ["2"], "stopped", 3, 1.0, {"reward": 1.0}, None, -0.5, ["2"])
    return replace(one, **changes)


def kept(run_dir):
    """All samples of a run by step."""
    return {step: read_samples(path) for step, path in sample_files(RunFolder(run_dir).samples).items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(CONFIG, folder / "run", folder)
    return folder / "run"


def test_what_a_run_keeps(whole):
    by_step = kept(whole)
    counts = {step: [sum(s.kind == kind for s in rows) for kind in ("eval", "train")] for step, rows in by_step.items()}
    assert {step: evaluated for step, (evaluated, _) in counts.items()} == {0: 16, 1: 0, 2: 16, 3: 16}
    assert counts[0][1] == 0 and all(2 <= counts[step][1] <= 4 for step in (1, 2, 3))
    for entry in read_journal(whole):
        evaluated = [s for s in by_step[entry.step] if s.kind == "eval"]
        assert [s.reward for s in evaluated] == entry.rewards.get("arithmetic", [])
        assert all(s.step == entry.step for s in by_step[entry.step])
    assert [s.prompt for s in by_step[0]] == [s.prompt for s in by_step[3] if s.kind == "eval"]
    for one in itertools.chain(*by_step.values()):
        assert one.task == "arithmetic" and one.prompt.startswith("<|im_start|>user\n") and one.prompt.endswith("<|im_start|>assistant\n")
        assert (one.stop == "stopped") == one.turns[-1].endswith(("<|im_end|>", "<|endoftext|>"))
        assert 1 <= one.tokens <= 24 and one.logprob <= 0 and one.scores["reward"] == one.reward and one.truth
        assert (one.advantage is None) == (one.kind == "eval")
        assert (one.entropy is None and one.kind == "train") or 0 < one.entropy < 10
    assert any(one.entropy is not None for one in by_step[1])
    assert not list(whole.rglob("*.tmp"))
    assert "samples" not in json.loads((whole / "journal.jsonl").read_text().splitlines()[0])


def test_samples_change_no_bit_and_no_identity(whole, tmp_path):
    off = make_config(samples={"eval": 0, "train": 0, "max_mib": 1.0})
    assert (identity(off), prefix_identity(off)) == (identity(CONFIG), prefix_identity(CONFIG))
    train(off, tmp_path / "run", tmp_path)
    assert not (tmp_path / "run" / "samples").exists()
    assert repeatable(tmp_path / "run") == repeatable(whole)
    ours, theirs = (load_checkpoint(checkpoints_of(folder)[-1]).tensors for folder in (tmp_path / "run", whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_resumed_run_has_every_sample_once(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    checkpoint_path(run, 3).unlink()
    (run / "summary.json").unlink()
    before = kept(run)
    folder = RunFolder(run).samples
    shutil.copy(sample_file(folder, 3), sample_file(folder, 7))  # of a step beyond the checkpoint
    sample_file(folder, 3).write_bytes(pack([sample(3, uid="stale"), sample(3, "train", uid="stale")]))
    train(CONFIG, run, tmp_path)
    assert kept(run) == before


def test_a_step_whose_evaluation_failed_keeps_both_kinds(whole, tmp_path, monkeypatch):
    calls = itertools.count(1)
    with monkeypatch.context() as patch:
        generate = HfEngine.generate

        def fail(*arguments, **options):
            if next(calls) == 5:  # trial, evaluation, step 1, step 2, evaluation
                raise EngineError("the engine is gone")
            return generate(*arguments, **options)

        patch.setattr(HfEngine, "generate", fail)
        with pytest.raises(EngineError):
            train(CONFIG, tmp_path / "run", tmp_path)
    assert {s.kind for s in kept(tmp_path / "run")[2]} == {"train"}
    train(CONFIG, tmp_path / "run", tmp_path)
    assert kept(tmp_path / "run") == kept(whole)


def test_samples_are_on_disk_before_the_journal_has_the_step(tmp_path, monkeypatch):
    append, seen = Journal.append, []

    def watched(self, step, *arguments):
        kinds = {s.kind for s in read_samples(sample_file(self.path.parent / "samples", step))}
        seen.append((step, sorted(kinds)))
        return append(self, step, *arguments)

    monkeypatch.setattr(Journal, "append", watched)
    train(make_config(train={"steps": 1}), tmp_path / "run", tmp_path)
    assert seen == [(0, ["eval"]), (1, ["eval", "train"])]


def test_a_full_disk_costs_samples_only(whole, tmp_path, monkeypatch, capsys):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(samples_module, "atomic", full)
    assert train(CONFIG, tmp_path / "run", tmp_path).status == "finished"
    said = "".join(capsys.readouterr())
    assert said.count("could not be written") == 1 and "No space left" in said and "training goes on" in said
    assert repeatable(tmp_path / "run") == repeatable(whole)


def test_the_limit_is_never_passed(tmp_path, capsys):
    row = sample(prompt="".join(chr(33 + i * i % 90) for i in range(2000)))
    store = SampleStore(tmp_path, SamplesConfig(max_mib=3.5 * len(pack([row])) / 2**20), -1)
    for step in range(6):
        store.add(step, "eval", [row])
    assert list(sample_files(tmp_path)) == [0, 1, 2]
    store.add(2, "eval", [replace(row, uid="again")])  # takes the place of what is there
    assert [s.uid for s in read_samples(sample_file(tmp_path, 2))] == ["again"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= store.settings.max_mib * 2**20
    assert "".join(capsys.readouterr()).count("samples.max_mib") == 1
    again = SampleStore(tmp_path, store.settings, 2)
    again.add(3, "eval", [row])
    assert list(sample_files(tmp_path)) == [0, 1, 2]


def test_a_kind_replaces_itself_only(tmp_path):
    store = SampleStore(tmp_path, SamplesConfig(), -1)
    for _ in range(2):
        store.add(1, "train", [sample(kind="train", uid="a")])
        store.add(1, "eval", [sample(uid="b")])
    assert [(s.step, s.kind, s.uid) for s in read_samples(sample_file(tmp_path, 1))] == [(1, "eval", "b"), (1, "train", "a")]
    sample_file(tmp_path, 1).write_bytes(b"cut short")
    store.add(1, "eval", [sample(uid="c")])
    assert [s.uid for s in read_samples(sample_file(tmp_path, 1))] == ["c"]


def test_files_of_older_versions_have_no_entropy(tmp_path):
    path = tmp_path / "step_000001.parquet"
    path.write_bytes(pack([sample(1, entropy=0.5)]))
    assert read_samples(path) == [sample(1, entropy=0.5)]
    pq.write_table(pq.read_table(path).drop_columns("entropy"), path)
    assert read_samples(path) == [sample(1)]


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "step_000001.parquet"
    whole = pack([sample()])
    other = pa.table({"step": [1]})
    contents = [b"", b"PAR1", whole[: len(whole) // 2], whole[:200] + b"\0" * 200 + whole[400:]]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"step_000001.parquet is damaged"):
            read_samples(path)
    pq.write_table(other, path)
    with pytest.raises(UserError, match="is damaged"):
        read_samples(path)
    with pytest.raises(UserError, match="does not exist"):
        read_samples(tmp_path / "none.parquet")


def test_a_longer_run_takes_the_samples_of_its_beginning(tmp_path):
    store = SampleStore(tmp_path / "old", SamplesConfig(), -1)
    for step in (0, 1, 2, 3):
        store.add(step, "eval", [sample()])
        store.add(step, "train", [sample(kind="train")])
    copy_samples(tmp_path / "old", tmp_path / "new", 2, evaluated=False)
    kinds = {step: [s.kind for s in read_samples(path)] for step, path in sample_files(tmp_path / "new").items()}
    assert kinds == {0: ["eval", "train"], 1: ["eval", "train"], 2: ["train"]}


def test_cells_of_a_grid_share_the_samples_of_the_base_model(tmp_path):
    for seed in (0, 1):
        train(make_config(train={"steps": 1}, mask_seed=seed), tmp_path / str(seed), tmp_path, grid=tmp_path / "grid")
    first, second = (kept(tmp_path / str(seed)) for seed in (0, 1))
    assert len(first[0]) == 16 and first[0] == second[0]
    assert [s.uid for s in first[1] if s.kind == "eval"] == [s.uid for s in first[0]]


def rollout(uid, reward, tokenizer, turns=("Sort: b a", "Now add c"), truth=("a b", "a b c")):
    """A conversation whose replies are their own truth, in ChatML."""
    one = Rollout(Episode(uid, turns, truth), scores={"reward": reward, "turn_1": 1.0})
    for index, (user, reply) in enumerate(zip(turns, truth, strict=True)):
        one.append_prompt(
            tokenizer(f"{'' if index == 0 else chr(10)}<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        )
        ids = tokenizer(f"{reply.encode('ascii', 'replace').decode()}<|im_end|>")["input_ids"]
        one.ids, one.loss_mask, one.logprobs = one.ids + ids, one.loss_mask + [True] * len(ids), one.logprobs + [-0.25] * len(ids)
    return one


def test_all_turns_of_a_conversation_are_kept(tokenizer):
    one = rollout("a", 0.5, tokenizer, truth=("a b", "x\ud800"))
    one.entropies = [0.5, 1.0]
    (found,) = eval_samples(tokenizer, "alphabet_sort", [one], 1, None)
    user = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert found.prompt == user.format("Sort: b a")
    assert found.turns == ["a b<|im_end|>", "\n" + user.format("Now add c"), "x?<|im_end|>"]
    assert found.truth == ["a b", "x\\ud800"]
    assert (found.logprob, found.entropy) == (-0.25, 0.75)
    assert (found.tokens, found.scores) == (one.completion_tokens, {"reward": 0.5, "turn_1": 1.0})
    assert read_samples_of(pack([found])) == [found]


def read_samples_of(content):
    import io

    return [Sample(**row | {"scores": json.loads(row["scores"])}) for row in pq.read_table(io.BytesIO(content)).to_pylist()]


def test_evaluations_keep_the_first_prompts_with_all_replies(tokenizer):
    rollouts = [rollout(uid, 1.0, tokenizer) for uid in "aabbcc"]
    found = eval_samples(tokenizer, "alphabet_sort", rollouts, 2, 2)
    assert [(s.uid, s.reply) for s in found] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert eval_samples(tokenizer, "alphabet_sort", rollouts, 2, 0) == []


def test_training_keeps_the_widest_groups(tokenizer):
    rewards = torch.tensor([[0.5, 0.5, 0.5], [0.2, 0.9, 0.0], [0.0, 1.0, 1.0], [0.5, 0.5, 0.4]], dtype=torch.float64)
    rollouts = [rollout(f"p{i // 3}", value, tokenizer) for i, value in enumerate(rewards.flatten().tolist())]
    found = train_samples(tokenizer, "alphabet_sort", rollouts, rewards, rewards - 1, 2, {7: 0.25, 6: 0.5, 5: 9.0})
    assert [sample.entropy for sample in found] == [0.25, 0.5, None, 9.0], "by the rollout's index: 7, 6, 4 and 5"
    assert [(s.uid, s.reply, s.reward, s.advantage) for s in found] == [
        ("p2", 1, 1.0, 0.0),
        ("p2", 0, 0.0, -1.0),
        ("p1", 1, 0.9, pytest.approx(-0.1)),
        ("p1", 2, 0.0, -1.0),
    ]
    everything = train_samples(tokenizer, "alphabet_sort", rollouts, rewards, rewards, 9, {})
    assert [s.uid for s in everything] == ["p2", "p2", "p1", "p1", "p3", "p3", "p0"]
    assert train_samples(tokenizer, "alphabet_sort", rollouts, rewards, rewards, 0, {}) == []
