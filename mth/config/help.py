"""--help and docs/configuration.md, both made from the fields of the schema and the files in conf/."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from mth.config.fields import Key, keys
from mth.config.launchers import LAUNCHERS
from mth.config.options import groups, options
from mth.config.pretrain_schema import PretrainConfig
from mth.config.schema import Config
from mth.foundations.errors import require

GENERAL = "general"  # the section of keys without a dot


def sections(schema: type) -> dict[str, tuple[str, list[Key]]]:
    """Section name -> (meaning, keys), in the schema's order; keys without a dot come last, under `general`."""
    hints = get_type_hints(schema)
    meaning = {each.name: _first_sentence(hints[each.name]) for each in fields(schema) if is_dataclass(hints[each.name])}
    found: dict[str, tuple[str, list[Key]]] = {}
    for key in keys(schema):
        name = key.name.partition(".")[0] if "." in key.name else GENERAL
        found.setdefault(name, (meaning.get(name, "Keys of no section."), []))[1].append(key)
    general = found.pop(GENERAL, None)
    return found | ({GENERAL: general} if general else {})


def launcher_sections() -> dict[str, tuple[str, list[Key]]]:
    """The same for the settings of grids: `hydra.launcher` with `hydra/launcher=local` and `hydra/launcher=slurm`."""
    return {
        f"hydra.launcher of {name}": (_first_sentence(kind), [key for key in keys(kind, "hydra.launcher.") if key.meaning])
        for name, kind in LAUNCHERS.items()
    }


def command_help(doc: str, topics: list[str], schema: type = Config) -> str:
    """The text of --help: what the command does, groups, keys. topics: sections to show, all if empty. Raises UserError for an unknown one."""
    known = sections(schema) | (launcher_sections() if schema is Config else {})
    chosen = {name for topic in topics for name in known if name == topic or name.startswith(f"{topic} ")}
    for topic in topics:
        require(any(name == topic or name.startswith(f"{topic} ") for name in known), f"--help {topic}: choose from {', '.join(known)}")
    lines = [] if topics else [doc.strip(), "", *(_groups() if schema is Config else ()), "Keys (KEY=VALUE)"]
    for name, (meaning, members) in known.items():
        if not topics or name in chosen:
            lines += ["", f"{name}: {meaning}", *_table([(f"  {key.name}", _default(key), _says(key)) for key in members])]
    return "\n".join(lines)


def _groups() -> Iterator[str]:
    yield "Groups (GROUP=OPTION)"
    yield from _table([(f"  {group}", ", ".join(options(group))) for group in groups()])
    yield ""


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return ["  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[-1]]).rstrip() for row in rows]


def _default(key: Key) -> str:
    if isinstance(key.default, dict):
        return "null" if key.default else "{}"
    return "null" if key.default is None else str(key.default).lower() if isinstance(key.default, bool) else str(key.default)


def _says(key: Key) -> str:
    """Meaning, then choices or range in brackets."""
    limits = "|".join(key.choices) if key.choices else key.range
    return f"{key.meaning} ({limits})" if limits else key.meaning


def _first_sentence(kind: Any) -> str:
    return str(kind.__doc__ or "").strip().partition("\n")[0]


def configuration_page() -> str:
    """docs/configuration.md. Write it with `make docs`."""
    lines = [
        "# Configuration",
        "",
        "Made from the fields of `mth/config/schema.py` by `make docs`. On the command line a key is set with `key=value`, a group with",
        "`group=option`; `python -m mth.train --help SECTION` prints one section.",
        "",
        "Keys marked with * say where or how a run happens. They are not part of its identity: a run continues with other values of them.",
        "",
        "## Groups",
        "",
        "| group | options |",
        "| --- | --- |",
        *(f"| `{group}` | {', '.join(f'`{option}`' for option in options(group))} |" for group in groups()),
    ]
    for title, known in (("", sections(Config) | launcher_sections()), ("mth.pretrain: ", sections(PretrainConfig))):
        for name, (meaning, members) in known.items():
            lines += ["", f"## {title}{name}", "", meaning, "", "| key | default | meaning | range |", "| --- | --- | --- | --- |"]
            for key in members:
                limits = ", ".join(f"`{choice}`" for choice in key.choices) or key.range
                star = " *" if key.place and not name.startswith("hydra") else ""
                lines.append(f"| `{key.name}`{star} | `{_default(key)}` | {key.meaning} | {limits} |")
    return "\n".join(lines) + "\n"


def launcher_help() -> str:
    """The text of `--help hydra.launcher`."""
    return command_help("", ["hydra.launcher"])
