"""What a run came to: `summary.json`."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mth.foundations.statistics import paired_error
from mth.runs.metrics import EVAL_REWARD, PASS_AT_1, PEAK_MEMORY, PHASES, PROMPTS, eval_metric, of_prompts, with_error

Results = dict[str, dict[str, float]]  # task -> pass_at_1 and reward, each with its standard error over prompts, as `pass_at_1_error`


@dataclass
class Summary:
    """How a run ended and what came out. status: finished, collapsed, interrupted or failed; None if the run has not ended in order.

    Only status, reason and label are sure to be there: a run may fail before it knows more. base, final: per evaluation task. change: from
    base to final; its errors are paired over prompts.
    seconds: per phase. ticket_bytes: per part of the ticket.
    """

    status: str | None = None
    reason: str | None = None
    steps: int = 0
    label: str = ""
    active_parameters: int | None = None
    total_parameters: int | None = None
    mask_sha256: str | None = None
    learning_rate: float | None = None
    base: Results = field(default_factory=dict)
    final: Results = field(default_factory=dict)
    change: Results = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    tokens_per_second: float | None = None
    ticket_bytes: dict[str, int] | None = None
    peak_memory_bytes: float | None = None

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Summary":
        """From what `summary.json` holds; keys of other versions are left out."""
        known = {each.name for each in fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in known})

    def to_json(self) -> dict[str, Any]:
        """What `summary.json` holds: everything that is known, and the reason."""
        return {key: value for key, value in asdict(self).items() if value is not None or key == "reason"}


def evaluations(entries: list[Any]) -> list[Any]:
    """Entries of a journal that hold an evaluation."""
    return [entry for entry in entries if any(key.startswith("eval/") for key in entry.metrics)]


def results(entries: list[Any], index: int, tasks: list[str]) -> Results:
    """pass@1 and reward of the first (0) or last (-1) evaluation of a journal, with their standard errors."""
    found = evaluations(entries)
    if not found:
        return {}
    keys = [name for key in (PASS_AT_1, EVAL_REWARD) for name in (key, with_error(key))]
    metrics = found[index].metrics
    return {task: {key: metrics[name] for key in keys if (name := eval_metric(task, key)) in metrics} for task in tasks}


def changes(entries: list[Any], tasks: list[str]) -> Results:
    """Change of pass@1 and reward from the first to the last evaluation of a journal. Both answer the same prompts, so errors are paired."""
    found = evaluations(entries)
    if len(found) < 2:
        return {}
    result: Results = {}
    for task in tasks:
        before, after = (of_prompts(found[i].rewards.get(task, []), found[i].metrics.get(eval_metric(task, PROMPTS))) for i in (0, -1))
        for key, (old, new) in {key: (before[key], after[key]) for key in before}.items():
            name = eval_metric(task, key)
            result.setdefault(task, {})[key] = found[-1].metrics[name] - found[0].metrics[name]
            if (error := paired_error(old, new)) is not None:
                result[task][with_error(key)] = error
    return result


def summarize(
    journal: Any, config: Any, status: str, reason: str | None, ticket: Any, ticket_bytes: dict[str, int], peak: float
) -> Summary:
    """The summary of a run, derived from its journal, so that a resumed run and an uninterrupted one agree.

    ticket_bytes: see `Ticket.memory`. peak: bytes, if the journal has none.
    """
    tasks = config.eval.tasks or []
    seconds = {phase: sum(journal.series(f"seconds/{phase}")) for phase in PHASES}
    generated = sum(journal.series("completion/tokens_mean")) * config.train.batch_size
    return Summary(
        status=status,
        reason=reason,
        steps=journal.entries[-1].step if journal.entries else 0,
        label=config.label,
        active_parameters=ticket.active_parameters,
        total_parameters=ticket.total_parameters,
        mask_sha256=ticket.mask_sha256,
        learning_rate=config.lr.value,
        base=results(journal.entries, 0, tasks),
        final=results(journal.entries, -1, tasks),
        change=changes(journal.entries, tasks),
        seconds=seconds,
        tokens_per_second=generated / max(sum(seconds.values()) - seconds["evaluation"], 1e-9),
        ticket_bytes=ticket_bytes,
        peak_memory_bytes=max(journal.series(PEAK_MEMORY), default=peak),
    )
