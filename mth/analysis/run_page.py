"""The page of one run: its curves, its settings as a difference to the defaults, and what the model wrote. One file that needs no network."""

import base64
import hashlib
import time
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mth.analysis.curves import metric_panels, packed
from mth.analysis.glance import Glance, clock, defaults, glance
from mth.config.fields import keys
from mth.config.schema import Config
from mth.config.stored import flat, from_plain, nested, to_plain
from mth.foundations.errors import UserError
from mth.foundations.files import to_json, write_text
from mth.foundations.paths import PACKAGE
from mth.foundations.provenance import code_version, commit_name
from mth.foundations.statistics import plus_minus
from mth.foundations.text import visible
from mth.runs.folder import RunFolder
from mth.runs.metrics import PASS_AT_1, with_error
from mth.runs.samples import Sample, read_samples, sample_files
from mth.runs.summary import Results, changes, results

WEB = PACKAGE / "analysis" / "web"
SCRIPTS = ("charts.js", "run.js")
PAGE_MIB = 24.0  # most MiB of samples in a page
ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}  # inside JSON; no text can then end the element that holds it


def run_page(path: Path, out: Path | None = None, metric: str = PASS_AT_1) -> Path:
    """Write the page of the run in the folder `path`; returns the page's path.

    out: folder to write `index.html` to; None for `page.html` in the run's folder. metric: of evaluations, the part behind eval/<task>/, that the first curve
    shows. What cannot be read is named in the page, and the rest is shown. Raises UserError if no evaluation has the metric.
    """
    run = glance(path)
    page = RunFolder(path).page_file if out is None else out / "index.html"
    write_text(page, render(run, metric))
    return page


def render(run: Glance, metric: str = PASS_AT_1) -> str:
    """The page as HTML. Raises UserError as `run_page` does."""
    samples, sample_notes = page_samples(run)
    panels, more = metric_panels(run, metric)
    data = packed(run.entries) | {"panels": panels, "more": more} | samples
    script = "\n".join((WEB / name).read_text() for name in SCRIPTS)
    version = code_version()
    return (
        jinja2.Environment(autoescape=True)
        .from_string((WEB / "run.html.j2").read_text())
        .render(
            title=run.summary.label or run.record.get("label") or run.path.resolve().name,
            status=run.status,
            facts=facts(run),
            notes=[each for each in (run.state, *run.problems) if each] + ([] if run.entries else ["The journal holds no step yet."]),
            tiles=tiles(run),
            settings=differences(run.settings),
            config="".join(f"{key}: {_plain(value)}\n" for key, value in run.settings.items()),
            sample_notes=sample_notes,
            data=data,
            json=Markup(json_in_html(data)),
            style=Markup((WEB / "run.css").read_text()),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            footer=f"{run.path.resolve()}, read {time.strftime('%Y-%m-%d %H:%M')} by mth {version['release']}, commit {commit_name(version)}",
        )
    )


def json_in_html(data: Any) -> str:
    """JSON that may stand inside a script element: it holds no `<`, `>` and `&`."""
    text = to_json(data)
    for character, escape in ESCAPES.items():
        text = text.replace(character, escape)
    return text


def facts(run: Glance) -> list[str]:
    """Who ran it, where and when, in a few words each."""
    code = run.record.get("code")
    return [
        text
        for text in (
            f"step {run.step} of {run.steps}" if run.steps else "",
            f"started {run.record['started'][:16].replace('T', ' ')}" if run.record.get("started") else "",
            f"last change {clock(run.changed)}" if run.changed else "",
            f"on {run.record['host']}" if run.record.get("host") else "",
            f"job {run.record['job']}" if run.record.get("job") else "",
            f"commit {commit_name(code)}" if code else "",
        )
        if text
    ]


def tiles(run: Glance) -> list[tuple[str, str, str]]:
    """Name, value and remark of the run's results, for the top of the page."""
    tasks = run.tasks
    before, after, change = results(run.entries, 0, tasks), results(run.entries, -1, tasks), changes(run.entries, tasks)
    differ = {task for task in tasks if after.get(task, {}).get("reward") != after.get(task, {}).get(PASS_AT_1)}
    shown = [
        (task, key)
        for task in tasks
        for key in (PASS_AT_1, "reward")
        if key in after.get(task, {}) and (key == PASS_AT_1 or task in differ)
    ]
    made = [_result(task, key, before, after, change) for task, key in shown]
    known = run.summary.active_parameters or run.record.get("facts", {}).get("active_parameters")
    total = run.summary.total_parameters or run.record.get("facts", {}).get("total_parameters")
    seconds: dict[str, float] = {}
    for name, value in chain.from_iterable(entry.metrics.items() for entry in run.entries):
        if name.startswith("seconds/"):
            seconds[name[8:]] = seconds.get(name[8:], 0) + value
    if known and total:
        made.append(("trained parameters", f"{known:,}", f"of {total:,}"))
    if seconds:
        largest = sorted(seconds.items(), key=lambda item: -item[1])[:3]
        made.append(("time", _duration(sum(seconds.values())), ", ".join(f"{name} {_duration(value)}" for name, value in largest)))
    peaks = [entry.metrics["peak_memory_bytes"] for entry in run.entries if "peak_memory_bytes" in entry.metrics]
    return made + ([("peak memory", f"{max(peaks) / 2**30:.2f} GiB", "")] if peaks else [])


def _result(task: str, key: str, before: Results, after: Results, change: Results) -> tuple[str, str, str]:
    name = "pass@1" if key == PASS_AT_1 else key
    first, last, moved = before[task], after[task], change.get(task, {})
    if key not in moved:
        return f"{name} on {task}", plus_minus(last[key], last.get(with_error(key))), "before training"
    by = plus_minus(moved[key], moved.get(with_error(key)), "+")
    return f"{name} on {task}", plus_minus(last[key], last.get(with_error(key))), f"{by} from {first[key]:.3f}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def differences(settings: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Key, value, default and meaning of the settings that one has to give to get them, and of those that this version does not know.

    What follows from other settings is no difference: a learning rate that the table gives, the evaluated task if it is the trained one.
    """
    usual, known = defaults(), {key.name: key for key in keys(Config)}
    rows = []
    for key, value in settings.items():
        if key == "run_dir" or (key in usual and value == usual[key]):
            continue
        default = known[key].default if key in known else usual.get(key)
        if not _follows(settings, key, default):
            rows.append((key, _plain(value), _plain(default) if key in usual else "", known[key].meaning if key in known else ""))
    return rows


def _follows(settings: dict[str, Any], key: str, default: Any) -> bool:
    """Whether a setting has its value also where only its default is given."""
    try:
        return flat(to_plain(from_plain(nested(settings | {key: default})))).get(key) == settings[key]
    except UserError:
        return False


def _plain(value: Any) -> str:
    """A setting as one would type it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_plain, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else visible(str(value)).replace("\n", "\\n")


def page_samples(run: Glance) -> tuple[dict[str, Any], list[str]]:
    """The samples as the page holds them, each prompt once, and one line for everything that is not shown.

    If they do not all fit, first and last step are shown, and of the others as many as fit, spread evenly.
    """
    files, notes = sample_files(RunFolder(run.path).samples), []
    shown: dict[int, list[dict[str, Any]]] = {}
    if not files:
        return {"prompts": [], "samples": []}, [
            "This run has no samples: it has not written any yet, an older version of mth ran it, or samples.eval=0 and samples.train=0."
        ]
    prompts: dict[str, int] = {}
    room = PAGE_MIB * 2**20
    for number, step in enumerate(spread(list(files))):
        try:
            rows = [_row(sample, prompts) for sample in read_samples(files[step])]
        except UserError as error:
            notes.append(f"{error}")
            continue
        room -= len(to_json(rows))
        if room < sum(map(len, prompts)) and number:
            left = len(files) - len(shown)
            notes.append(
                f"Samples of {left} of {len(files)} steps are left out of this page; see python -m mth.samples {run.path} --step N"
            )
            break
        shown[step] = rows
    return {"prompts": list(prompts), "samples": [row for step in sorted(shown) for row in shown[step]]}, notes


def _row(sample: Sample, prompts: dict[str, int]) -> dict[str, Any]:
    """A sample with its prompt's number in place of the prompt, and with hidden characters written out."""
    texts = {"uid": visible(sample.uid), "task": visible(sample.task)}
    turns, truth = ([visible(text) for text in part] for part in (sample.turns, sample.truth))
    scores = {visible(name): value for name, value in sample.scores.items()}
    known = asdict(sample) | texts | {"turns": turns, "truth": truth, "scores": scores}
    return known | {"prompt": prompts.setdefault(visible(sample.prompt), len(prompts))}


def spread(steps: list[int]) -> list[int]:
    """The steps in an order of which every beginning covers them evenly: last, first, middle, quarters, ..."""
    order, parts = dict.fromkeys([*steps[-1:], *steps[:1]]), [(0, len(steps) - 1)]
    for low, high in parts:  # grows while it is read
        middle = (low + high) // 2
        order[steps[middle]] = None
        parts += [part for part in ((low, middle), (middle, high)) if part[1] - part[0] > 1]
    return list(order)
