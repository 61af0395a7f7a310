"""Damaged checkpoints: whatever happened to the bytes, a file is refused with one line or gives exactly what was saved."""

import copy
import json
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mth.config.schema import OptimizerConfig
from mth.foundations.errors import UserError
from mth.runs.checkpoint import (
    checkpoint_path,
    checkpoints_of,
    load_checkpoint,
    prune_checkpoints,
    restore_training,
    save_checkpoint,
    usable_checkpoint,
)
from mth.runs.folder import RunFolder
from mth.runs.journal import read_journal
from mth.tickets.optimizer import build_optimizer, state_shapes
from mth.training.loop import train
from tests.conftest import make_config
from tests.tickets.test_ticket import ticket_of

CONFIG = make_config(train={"steps": 9})


def stepped(model, config, steps):
    """A ticket of the model, and its optimizer after some steps."""
    ticket = ticket_of(model, 90)
    optimizer = build_optimizer(ticket, config, 1e-2)
    for _ in range(steps):
        ticket.values.grad += 1
        optimizer.step()
    return ticket, optimizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The bytes of a small checkpoint, its header and its tensors."""
    ticket, optimizer = stepped(torch.nn.Linear(40, 30), OptimizerConfig(), 2)
    path = tmp_path_factory.mktemp("saved") / "c.safetensors"
    save_checkpoint(path, ticket, CONFIG, 2, optimizer, {}, {"loss": 0.5})
    with safe_open(path, framework="pt") as file:
        return path.read_bytes(), json.loads(file.metadata()["mth"]), {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict


def parts(content):
    """Where each part of a file begins and ends."""
    (length,) = struct.unpack("<Q", content[:8])
    found = {"length": (0, 8), "metadata": (8, content.index(b'"}', content.index(b"xxh3_128")) + 3)}
    for name, entry in json.loads(content[8 : 8 + length]).items():
        if name != "__metadata__":
            found[name] = tuple(8 + length + offset for offset in entry["data_offsets"])
            found[f"entry of {name}"] = (place := content.index(f'"{name}":{{'.encode()), content.index(b"}", place))
    return found


def refusal(path, original):
    """The one line that refuses a file; None if it is read, and then it holds what was saved."""
    try:
        found = load_checkpoint(path)
    except UserError as error:
        return str(error)
    assert found.header == original.header
    assert found.tensors.keys() == original.tensors.keys()
    assert all(torch.equal(found.tensors[name], original.tensors[name]) for name in found.tensors)
    return None


FLIPPED = ["length", "metadata", "values", "rng", "entry of values", "entry of rng"]
FLIPPED += [name for part in ("step", "exp_avg", "exp_avg_sq") for name in (f"optimizer.{part}", f"entry of optimizer.{part}")]


@pytest.mark.parametrize("part", FLIPPED)
def test_a_flipped_bit_is_found_wherever_it_is(saved, tmp_path, part):
    """Every bit of the short parts, and 200 bits spread over the others."""
    content, *_ = saved
    path, whole = tmp_path / "c.safetensors", tmp_path / "whole.safetensors"
    whole.write_bytes(content)
    original = load_checkpoint(whole)
    start, end = parts(content)[part]
    bits = range(8 * start, 8 * end, max(1, 8 * (end - start) // 200 | 1))
    refused = []
    for bit in bits:
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        refused.append(refusal(path, original))
    assert all(line is not None and "\n" not in line and str(path) in line for line in refused)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, 0.3, 0.5, 0.9, -4, -1])
def test_a_truncated_file_is_refused(saved, tmp_path, kept):
    content, *_ = saved
    path = tmp_path / "c.safetensors"
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(UserError, match="damaged or truncated"):
        load_checkpoint(path)


def without(*names):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def instead(name, change):
    return lambda tensors: tensors | {name: change(tensors[name]).contiguous()}


FIRST, SECOND, STEP = "optimizer.exp_avg", "optimizer.exp_avg_sq", "optimizer.step"
WRONG_TENSORS = {
    "values of length 1": instead("values", lambda t: t[:1]),
    "no values at all": instead("values", lambda t: t[:0]),
    "a value too many": instead("values", lambda t: torch.cat([t, t[:1]])),
    "values in two dimensions": instead("values", lambda t: t[None]),
    "values missing": without("values"),
    "values in bf16": instead("values", lambda t: t.bfloat16()),
    "values in fp64": instead("values", lambda t: t.double()),
    "values that are integers": instead("values", lambda t: t.view(torch.int32)),
    "values that are complex": instead("values", lambda t: torch.complex(t, t)),
    "first moments missing": without(FIRST),
    "second moments missing": without(SECOND),
    "number of steps missing": without(STEP),
    "all of the optimizer missing": without(FIRST, SECOND, STEP),
    "first moments of length 1": instead(FIRST, lambda t: t[:1]),
    "second moments cut": instead(SECOND, lambda t: t[:-1]),
    "second moments in fp16": instead(SECOND, lambda t: t.half()),
    "a number of steps for each value": instead(STEP, lambda t: t.repeat(3)),
    "a number of steps that is an integer": instead(STEP, lambda t: t.long()),
    "a moment of another optimizer": lambda tensors: tensors | {"optimizer.momentum_buffer": tensors["values"].clone()},
    "a tensor of another run": lambda tensors: tensors | {"lagged": tensors["values"].clone()},
    "random state missing": without("rng"),
    "random state cut": instead("rng", lambda t: t[:100]),
    "random state in fp32": instead("rng", lambda t: t.float()),
    "random state of ones": instead("rng", lambda t: t * 0 + 1),
}


@pytest.mark.parametrize("fault", WRONG_TENSORS)
def test_tensors_that_do_not_fit_are_refused_without_a_digest_too(saved, tmp_path, fault):
    _, header, tensors = saved
    path = tmp_path / "c.safetensors"
    save_file(WRONG_TENSORS[fault](tensors), path, {"mth": json.dumps(undigested(header))})
    with pytest.raises(UserError, match=r"damaged \((values|lagged|rng|optimizer\.|'lagged|'optimizer)"):
        load_checkpoint(path)


def undigested(header):
    """As an older version wrote it: the contents decide."""
    return {key: value for key, value in header.items() if key != "xxh3_128"}


def changed(**changes):
    return lambda header: json.dumps(undigested(header) | changes)


def lacking(key):
    return lambda header: json.dumps({name: value for name, value in undigested(header).items() if name != key})


ODD_HEADERS = {
    "none": lambda header: None,
    "empty": lambda header: "",
    "a list": lambda header: "[]",
    "null": lambda header: "null",
    "a number": lambda header: "5",
    "cut": lambda header: '{"format": "mth-ticket-1", ',
    "nested": lambda header: "[" * 100_000,
    "of another format": changed(format="mth-ticket-9"),
    "format is a list": changed(format=["mth-ticket-1"]),
    "step is text": changed(step="2"),
    "step is true": changed(step=True),
    "step is negative": changed(step=-1),
    "step is too large": changed(step=10),
    "step is not a number": changed(step="NaN"),
    "configuration is empty text": changed(config=""),
    "configuration is a list": changed(config=[1]),
    "configuration has another key": changed(config={"unknown": 1}),
    "configuration has another type": changed(config={"model": 5}),
    "configuration is nested": changed(config={"train": {"steps": {"a": [[[]]]}}}),
    "configuration out of range": changed(config={"train": {"steps": -3}}),
    "a mask of another type": changed(mask_sha256=7),
    "fractional parameters": changed(active_parameters=120.0),
    "parameters of another number": changed(active_parameters=1),
    "unlogged is a number": changed(unlogged=3),
    "unlogged holds text": changed(unlogged={"loss": "low"}),
    "no digest but another key": lambda header: json.dumps(undigested(header) | {"xxh3_129": header["xxh3_128"]}),
    "an empty digest": lambda header: json.dumps(header | {"xxh3_128": ""}),
    "another digest": lambda header: json.dumps(header | {"xxh3_128": "0" * 32}),
    "the digest of another step": lambda header: json.dumps(header | {"step": 1}),
    **{f"no {key}": lacking(key) for key in ("format", "step", "identity", "config", "mask_sha256", "base_sha256", "total_parameters")},
}


@pytest.mark.parametrize("fault", ODD_HEADERS)
def test_odd_headers_are_refused_in_one_line(saved, tmp_path, fault):
    _, header, tensors = saved
    path = tmp_path / "c.safetensors"
    text = ODD_HEADERS[fault](header)
    save_file(tensors, path, {"format": "pt"} if text is None else {"mth": text})
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_checkpoint_of_an_older_version_has_no_digest_and_is_used(saved, tmp_path):
    _, header, tensors = saved
    save_file(tensors, tmp_path / "c.safetensors", {"mth": json.dumps(undigested(header))})
    assert load_checkpoint(tmp_path / "c.safetensors").header["step"] == 2


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("optimizer", [{"name": "adamw"}, {"name": "adam"}, {"name": "sgd"}, {"name": "sgd", "momentum": 0.9}], ids=str)
def test_every_optimizer_finds_its_state_again(tmp_path, optimizer, lag):
    """Before its first step too, when it has none."""
    config = make_config(optimizer=optimizer, algorithm={"lag": lag})
    for steps in (0, 2):
        model = torch.nn.Linear(40, 30)
        ticket, built = stepped(copy.deepcopy(model), config.optimizer, steps)
        extra = {"lagged": ticket.values.detach().clone()} if lag else {}
        save_checkpoint(tmp_path / "c.safetensors", ticket, config, steps, built, extra)
        found = load_checkpoint(tmp_path / "c.safetensors")
        state = {name.removeprefix("optimizer."): tuple(tensor.shape) for name, tensor in found.tensors.items() if "optimizer" in name}
        assert state == (state_shapes(config.optimizer, ticket.active_parameters) if steps else {})
        again = ticket_of(model, 90)
        assert restore_training(found, again, build_optimizer(again, config.optimizer, 1e-2), config) == (steps, None)


def test_damaged_checkpoints_are_set_aside_and_do_not_count_as_kept(saved, tmp_path):
    content, *_ = saved
    for step in (1, 2, 3, 4):
        path = checkpoint_path(tmp_path, step)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if step in (1, 2) else content[:-1] + bytes([content[-1] ^ 1]))
    found, warnings = usable_checkpoint(tmp_path)
    assert found.path == checkpoint_path(tmp_path, 2)
    assert ["using the one before" in line for line in warnings] == [True, True]
    assert all("do not match their digest" in line and "it is now step_00000" in line for line in warnings)
    checkpoint_path(tmp_path, 3).write_bytes(content)  # the next one that the run writes
    prune_checkpoints(tmp_path, 2)
    assert checkpoints_of(tmp_path) == [checkpoint_path(tmp_path, 2), checkpoint_path(tmp_path, 3)]
    assert sorted(path.name for path in checkpoint_path(tmp_path, 1).parent.glob("*.damaged")) == [
        "step_000003.safetensors.damaged",
        "step_000004.safetensors.damaged",
    ]


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before_and_says_so(tmp_path, capsys):
    config = make_config(train={"steps": 2}, eval={"every": 0})
    train(config, tmp_path / "run", tmp_path)
    last = checkpoint_path(tmp_path / "run", 2)
    content, computed = last.read_bytes(), [entry.metrics["reward/mean"] for entry in read_journal(tmp_path / "run")[1:]]
    changed = bytearray(content)
    changed[-3000] ^= 4
    last.write_bytes(changed)
    RunFolder(tmp_path / "run").summary_file.unlink()  # as after a kill
    train(config, tmp_path / "run", tmp_path)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert "step_000002.safetensors is damaged (its contents do not match their digest); using the one before" in line
    assert [entry.metrics["reward/mean"] for entry in read_journal(tmp_path / "run")[1:]] == computed
    assert last.read_bytes() == content
