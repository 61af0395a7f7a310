"""What every tracker is told of a run: its name, parameters, tags, a description, the names of its metrics, its samples."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from mth.config.identity import PLACES, identity
from mth.config.schema import Config
from mth.config.stored import flat, to_plain
from mth.foundations.errors import UserError
from mth.foundations.files import read_json
from mth.foundations.provenance import commit_name
from mth.foundations.statistics import plus_minus
from mth.runs.folder import RunFolder
from mth.runs.journal import Entry
from mth.runs.metrics import PHASES
from mth.runs.samples import EVAL, Sample, read_samples, sample_files
from mth.runs.summary import Summary

CONFIG_TAG = "mth.config"  # the whole configuration, from which a report reads the run; mth.config.1 ... go on where it is too long
TAG_LENGTH = 5000  # what every MLflow server takes
SHOWN_SAMPLES = 100  # most replies per task and step in a tracker's table; the run folder has all
NAMED = ("sparsity", "mask", "mask_seed", "lr", "model", "task")  # groups that a run's name holds anyway


@dataclass(frozen=True)
class TrackedRun:
    """A run as its trackers see it. root: of all runs. grid: folder of its grid. facts: numbers that follow from the configuration."""

    config: Config
    folder: RunFolder
    root: Path
    grid: Path | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What differs in the grid comes first: sparsity, mask, seed, learning rate, other swept keys; then model and task."""
        c, mask = self.config, self.config.mask_name.replace(", ", "-").replace(" ", "_")
        words = [f"s{c.sparsity.percent:.9g}", *([] if mask == "random" else [mask]), f"m{c.mask_seed}", f"lr{short(c.lr.value or 0)}"]
        values = flat(to_plain(c))
        words += [f"{key.rpartition('.')[2]}{short(values[key])}" for key in swept_keys(self.grid) if values.get(key) is not None]
        return "-".join([*words, c.model.name, c.task.name])

    @property
    def settings(self) -> dict[str, Any]:
        """What people filter and group by, and every key with another value than its default. None is left out."""
        c = self.config
        filters = {
            "model": c.model.name,
            "task": c.task.name,
            "sparsity": c.sparsity.percent,
            "mask": c.mask_name,
            "mask_seed": c.mask_seed,
            "lr": c.lr.value,
            "seed": c.seed.train,
            "steps": c.train.steps,
            "algorithm": f"{c.algorithm.advantage.name}-{c.algorithm.ratio.name}",
        }
        shown = {"model.name", "task.name", "sparsity.percent", "mask.family", "lr.value", "seed.train", "train.steps"}
        changed = {key: value for key, value in differences(c).items() if key not in shown}
        known = changed | filters | self.facts
        return {key: value for key, value in known.items() if value is not None}

    @property
    def tags(self) -> dict[str, str]:
        """Folder, identity, commit of the code that ran, `sweep` (the grid's name), and the whole configuration."""
        commit = commit_name(self.folder.record().get("code") or {})
        tags = {"mth.run_dir": str(self.folder.path), "mth.identity": identity(self.config), "mth.commit": commit}
        if self.grid is not None:
            inside = self.grid.is_relative_to(self.root)
            tags["sweep"] = str(self.grid.relative_to(self.root)) if inside else self.grid.name
        whole = json.dumps(without_places(to_plain(self.config)), separators=(",", ":"))
        parts = [whole[start : start + TAG_LENGTH] for start in range(0, len(whole), TAG_LENGTH)]
        return tags | {f"{CONFIG_TAG}.{number}" if number else CONFIG_TAG: part for number, part in enumerate(parts)}

    def metrics(self, entry: Entry) -> dict[str, float]:
        """The metrics of a step under the names that trackers show."""
        return {tracked_name(key, self.config.task.name): value for key, value in entry.metrics.items()}

    def start_ms(self, entries: list[Entry]) -> int:
        """When the run began, in milliseconds since 1970: before its first step, or as run.json says if that is earlier."""
        starts = []
        if entries:
            phases = (entries[0].metrics.get(f"seconds/{phase}", 0.0) for phase in PHASES)
            starts.append(entries[0].time - int(1000 * sum(phases)))
        with suppress(KeyError, TypeError, ValueError):  # never started, or by a version that wrote no time
            starts.append(int(1000 * datetime.fromisoformat(self.folder.record()["started"]).timestamp()))
        return min(starts, default=int(1000 * time.time()))

    def end_ms(self, entries: list[Entry]) -> int:
        """When the run ended: with its last step."""
        return max(entries[-1].time if entries else 0, self.start_ms(entries))

    def description(self, summary: Summary) -> str:
        """Two lines: what the run is, and what came out of it so far."""
        c, active, total = self.config, self.facts.get("active_parameters"), self.facts.get("total_parameters")
        what = f"{active:,} of {total:,} parameters" if active and total else f"{100 - c.sparsity.percent:.6g} % of the parameters"
        mask = f" (mask: {c.mask_name}, seed {c.mask_seed})" if c.sparsity.percent else ""
        first = f"Trains {what} of {c.model.name}{mask} on {c.task.name}, {c.train.steps} steps at learning rate {short(c.lr.value or 0)}."
        words = [f"{summary.status} after {summary.steps} steps" if summary.status else "running", *results_in_words(summary)]
        second = "; ".join(words)
        return f"{first}\n{second[0].upper()}{second[1:]}."


def results_in_words(summary: Summary) -> list[str]:
    """pass@1 of each evaluated task, before and after."""
    ends = {task: (base, summary.final.get(task, {})) for task, base in summary.base.items()}
    return [
        f"{task} pass@1 {' -> '.join(plus_minus(each['pass_at_1'], each.get('pass_at_1_error')) for each in pair)}"
        for task, pair in ends.items()
        if all("pass_at_1" in each for each in pair)
    ]


def stored_config(tags: dict[str, str]) -> dict[str, Any] | None:
    """The plain configuration that `TrackedRun.tags` holds; None in runs of earlier versions."""
    count = sum(key == CONFIG_TAG or key.startswith(f"{CONFIG_TAG}.") for key in tags)
    return json.loads("".join(tags[f"{CONFIG_TAG}.{n}" if n else CONFIG_TAG] for n in range(count))) if count else None


def tracked_name(metric: str, task: str) -> str:
    """A metric's name in a tracker. What belongs to the trained task says so: trackers average a name over the runs of a group."""
    return metric if metric.startswith("eval/") else f"train/{task}/{metric}"


def journal_name(metric: str, task: str) -> str:
    """The inverse of `tracked_name`. Runs of earlier versions have the journal's names."""
    return metric.removeprefix(f"train/{task}/")


def short(value: Any) -> str:
    """A number in as few characters as it takes: 0.03, 1e-3. Anything else as text."""
    if not isinstance(value, float):
        return str(value)
    plain, (digits, exponent) = f"{value:.9g}", f"{value:.8e}".split("e")
    scientific = f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    return min(plain, scientific, key=len)


def differences(config: Config) -> dict[str, Any]:
    """Keys that say what a run is and differ from their defaults, by dotted name."""
    defaults, values = flat(to_plain(Config())), flat(without_places(to_plain(config)))
    return {key: value for key, value in values.items() if value != defaults.get(key)}


def without_places(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A plain configuration without the keys that say where and how a run happens, and without empty sections."""
    kept = {key: value for key, value in data.items() if f"{prefix}{key}" not in PLACES}
    inner = {key: without_places(value, f"{prefix}{key}.") if isinstance(value, dict) else value for key, value in kept.items()}
    return {key: value for key, value in inner.items() if value != {}}


def swept_keys(grid: Path | None) -> list[str]:
    """Keys that differ between the cells of a grid, without those that every run's name holds."""
    cells = read_json(grid / "grid.json").get("cells", []) if grid is not None else []
    given = [dict(override.partition("=")[::2] for override in cell.get("overrides", [])) for cell in cells]
    varied = [key for key in {key: None for each in given for key in each} if len({each.get(key) for each in given}) > 1]
    return [key for key in varied if key.partition(".")[0] not in NAMED and "@" not in key]


def shown_samples(folder: RunFolder) -> Iterator[Sample]:
    """The evaluation's samples of the first and the last step that has some, of each task at most SHOWN_SAMPLES. Damaged files are left out."""
    files = list(sample_files(folder.samples).values())
    first, last = _evaluated(files), _evaluated(files[::-1])
    for samples in (first, last if last != first else []):
        counts: Counter[str] = Counter()
        for sample in samples:
            counts[sample.task] += 1
            if counts[sample.task] <= SHOWN_SAMPLES:
                yield sample


def _evaluated(files: list[Path]) -> list[Sample]:
    """The evaluation's samples of the first of these files that has some."""
    for path in files:
        with suppress(UserError):
            if samples := [sample for sample in read_samples(path) if sample.kind == EVAL]:
                return samples
    return []
