"""Which keys take part in the identity of a run."""

import pytest

from mth.config.compose import compose
from mth.config.identity import differing_keys, identity
from mth.config.stored import flat, from_plain, load, to_plain
from tests.conftest import make_config


def test_identity_is_what_influences_the_result():
    base = identity(make_config())
    assert identity(make_config(run_dir="elsewhere", resume=True, tracker={"uri": "http://x"}, checkpoints={"every": 7})) == base
    moved = make_config(rollout={"url": "http://x:1", "timeout_s": 5.0, "gpu_memory_utilization": 0.9, "kv_cache_mib": 256})
    assert identity(moved) == base
    assert differing_keys(to_plain(make_config()), to_plain(moved)) == []
    for change in (
        {"mask_seed": 1},
        {"seed": {"train": 1}},
        {"sparsity": {"percent": 99.5}},
        {"train": {"steps": 4}},
        {"lr": {"value": 1e-4}},
    ):
        assert identity(make_config(**change)) != base


SAME = [
    (["mask=magnitude", "mask_seed=10"], ["mask=magnitude"]),
    (["mask=first_layer_whole", "mask_seed=10"], ["mask=first_layer_whole"]),
    (["mask=last_layer_whole", "mask_seed=10", "sparsity=99.9", "lr=5e-3"], ["mask=last_layer_whole"]),
    (["spectrum.width=64", "spectrum.seed=3", "spectrum.dtype=bfloat16"], []),
    (["optimizer.momentum=0.9"], []),
    (["optimizer=adam", "optimizer.momentum=0.9"], ["optimizer=adam"]),
    (["optimizer=sgd", "optimizer.beta1=0.5", "optimizer.beta2=0.5", "optimizer.eps=1e-3"], ["optimizer=sgd"]),
    (["algorithm.drop_low=0.5", "algorithm.drop_high=2"], []),
    (["algorithm.ratio=drop", "algorithm.clip_eps=0.3"], ["algorithm.ratio=drop"]),
    (["model.device=cpu"], []),
    (["model.init_seed=7"], []),
    (["rollout.dtype=float32"], []),
    (["rollout.context=512"], []),
    (["model.path=a/b", "model.tokenizer=a/b", "lr=1e-3"], ["model.path=a/b", "lr=1e-3"]),
    (["task=arithmetic", "task.min_turns=1", "task.max_turns=4", "task.min_names=2", "task.max_names=9"], ["task=arithmetic"]),
]


DIFFERENT = [
    (["mask=first_layer", "mask_seed=10"], ["mask=first_layer"]),
    (["mask=first_layer_whole", "sparsity=99.9"], ["mask=first_layer_whole"]),  # Table 2 has another rate
    (["spectrum.mode=sketch", "spectrum.seed=3"], ["spectrum.mode=sketch"]),
    (["optimizer=sgd", "optimizer.momentum=0.9"], ["optimizer=sgd"]),
    (["optimizer.beta1=0.5"], []),
    (["algorithm.ratio=drop", "algorithm.drop_low=0.5"], ["algorithm.ratio=drop"]),
    (["algorithm.clip_eps=0.3"], []),
    (["model.init=random", "model.init_seed=7"], ["model.init=random"]),
    (["rollout.dtype=bfloat16"], []),
    (["rollout=vllm", "rollout.context=512"], ["rollout=vllm"]),
    (["task.max_names=9"], []),
    (
        ["task=arithmetic", "eval.tasks=[arithmetic,alphabet_sort]", "task.max_names=9"],
        ["task=arithmetic", "eval.tasks=[arithmetic,alphabet_sort]"],
    ),
]


@pytest.mark.parametrize(("left", "right", "same"), [(*pair, True) for pair in SAME] + [(*pair, False) for pair in DIFFERENT])
def test_a_run_is_the_same_whatever_has_no_effect(left, right, same):
    a, b = (load(compose(overrides)) for overrides in (left, right))
    assert (identity(a) == identity(b)) is same
    assert (differing_keys(to_plain(a), to_plain(b)) == []) is same
    assert from_plain(to_plain(a)) == a


def test_a_file_is_the_same_by_any_spelling_of_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "d.jsonl").write_text("")
    spellings = ["d.jsonl", "./d.jsonl", str(tmp_path / "d.jsonl"), "~/d.jsonl", "'~/d.jsonl'", "./x/../d.jsonl"]
    for key in ("task.path", "eval.paths.gsm8k", "model.path", "model.tokenizer"):
        found = [load(compose([f"{key}={spelling}"])) for spelling in spellings]
        assert len({identity(config) for config in found}) == 1, key
        assert flat(to_plain(found[0]))[key] == str(tmp_path / "d.jsonl")
    for name in ("none.jsonl", "some/model"):  # nothing of that name is here: perhaps a hub id
        assert load(compose([f"task.path={name}"])).task.path == name
