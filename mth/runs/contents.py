"""What a run reads beside its configuration: digests of local files and revisions of hub repositories, kept in run.json and compared.

A configuration names data, weights and tokenizer; what lies under a name can change. Contents are not part of a run's identity: a run that
read something else is refused, not silently taken for another one.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mth.config.choices import Init
from mth.config.schema import Config
from mth.foundations.errors import require
from mth.foundations.files import digest, read_json
from mth.runs.folder import RunFolder

Contents = dict[str, dict[str, str]]  # key of the configuration -> file name, or hub id -> digest or revision

MODEL_FILES = ("config.json", "generation_config.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
)


def contents(config: Config) -> Contents:
    """What a run with this configuration reads, by key. Leaves out what is not on this machine yet.

    Local files have the sha256 of their bytes; a hub id has the commit that the hub's cache holds as its newest.
    """
    found: Contents = {}
    for key, source, files in (*_model_sources(config), *_data_sources(config)):
        known = _digests(Path(source), files) if Path(source).exists() else _revision(source, key)
        if known:
            found[key] = found.get(key, {}) | known
    return found


def _model_sources(config: Config) -> Iterator[tuple[str, str, Any]]:
    """Key, source, and names of its files that are loaded; none if the source is a file."""
    from mth.models.shapes import local_copy, model_files  # loads torch, which looking at runs does not need

    model, source = config.model, model_files(config.model)
    key = "model.name" if model.path is None else "model.path"
    if model.init is Init.pretrained:
        yield key, source, (*MODEL_FILES, *_weight_files(Path(source)))
    elif Path(source).exists():
        yield key, source, MODEL_FILES
    yield (key, source, TOKENIZER_FILES) if model.tokenizer is None else ("model.tokenizer", local_copy(model.tokenizer), TOKENIZER_FILES)


def _weight_files(folder: Path) -> Sequence[str]:
    """Names of the files that hold a folder's weights: one, or those that its index names."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return ("model.safetensors",)
    return (index.name, *sorted(set(read_json(index).get("weight_map", {}).values())))


def _data_sources(config: Config) -> Iterator[tuple[str, str, Any]]:
    """As `_model_sources`, for the data of the trained task and of those that are evaluated; a task may generate its own."""
    from mth.tasks import eval_sections, module_of

    sections = {"task.path": config.task, **{f"eval.paths.{name}": section for name, section in eval_sections(config).items()}}
    for key, section in sections.items():
        source = section and (section.path or module_of(section).SOURCE)
        if source:
            yield key, source, _data_files(Path(source))


def _data_files(path: Path) -> Sequence[str]:
    from mth.tasks.data import FORMATS

    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.suffix in FORMATS) if path.is_dir() else ()


def _digests(path: Path, files: Sequence[str]) -> dict[str, str]:
    """sha256 of a file, or of those of a folder's files that exist."""
    paths = {path.name: path} if path.is_file() else {name: path / name for name in files}
    return {name: digest(file) for name, file in paths.items() if file.is_file()}


def _revision(source: str, key: str) -> dict[str, str]:
    """The newest commit of a hub repository in the caches on this machine; empty if there is none."""
    if key.startswith("model."):
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        head = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=source, repo_type="model") / "refs" / "main"
        return {source: head.read_text().strip()} if head.is_file() else {}
    from datasets import config as datasets_config
    from datasets.naming import camelcase_to_snakecase

    *owner, name = source.split("/")
    prepared = Path(datasets_config.HF_DATASETS_CACHE) / "___".join([*owner, camelcase_to_snakecase(name)])  # subset / version / commit
    newest = max(prepared.glob("*/*/" + "[0-9a-f]" * 40), key=lambda folder: folder.stat().st_mtime, default=None)
    return {source: newest.name} if newest is not None else {}


def known_contents(run_dir: Path) -> Contents:
    """What a run read when it was last started, or what the shorter run read that it extends; empty for runs of older versions."""
    folder = RunFolder(run_dir)
    return folder.record().get("contents") or read_json(folder.beginning_file).get("contents") or {}


def changed(run_dir: Path, config: Config, prefix: str = "") -> str | None:
    """What a run read under keys with this prefix that is different now, in words; None if nothing is known to have changed."""
    known = {key: then for key, then in known_contents(run_dir).items() if key.startswith(prefix)}
    now = contents(config) if known else {}
    for key, then in known.items():
        for name in sorted(then.keys() | now[key].keys()) if key in now else ():
            if then.get(name) != now[key].get(name):
                return f"{key}: {name} {'is new' if name not in then else 'is gone' if name not in now[key] else 'has changed'}"
    return None


def refuse_change(run_dir: Path, config: Config) -> None:
    """Raises UserError, naming key and file, if a run's data, weights or tokenizer are no longer those that it read."""
    change = changed(run_dir, config)
    require(change is None, f"{change} since the run in {run_dir}; put it back, or give force=true to run anew")


def refuse_other_model(run_dir: Path, config: Config) -> None:
    """Raises UserError, naming key and file, if weights or tokenizer are no longer those that a run trained. Its data may be others."""
    change = changed(run_dir, config, "model.")
    require(change is None, f"{change} since the run in {run_dir}, whose checkpoint belongs to what was there; put it back")


def keep_contents(run_dir: Path, config: Config) -> None:
    """Compare once more and keep what is known: hub revisions are, once everything is loaded. Raises UserError as `refuse_change` does."""
    refuse_change(run_dir, config)
    RunFolder(run_dir).add_to_record(contents=known_contents(run_dir) | contents(config))
