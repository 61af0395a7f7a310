"""What a grid will cost, before it is launched: cells, active parameters, memory, rollouts, what is finished already."""

from collections.abc import Mapping, Sequence

from mth.config.cells import Cell
from mth.config.stored import flat, to_plain
from mth.grid.capacity import needs, remedy
from mth.grid.memory import ModelFacts, active_counts, memory_estimate, on_card
from mth.grid.placement import TO_DO
from mth.grid.record import GridCell
from mth.grid.show import table
from mth.runs.journal import read_journal


def plan_table(cells: Sequence[Cell], placed: Sequence[GridCell], models: Mapping[str, ModelFacts], card: int | None = None) -> str:
    """One line per cell, and the totals. models: from `preflight`. card: bytes of the GPU that each cell will have; None: what is here."""
    changing = _changing(cells)
    rows, rollouts, memories = [], 0, []
    for cell, entry in zip(cells, placed, strict=True):
        config, model = cell.config, models[repr(cell.config.model)]
        parts = memory_estimate(config, model, card)
        memory = sum(parts.values()) if card is None or config.model.device == "cpu" else on_card(parts)
        memories.append((memory, cell, parts))
        count = config.train.steps * config.train.batch_size
        if entry.found in TO_DO:
            rollouts += count - _steps_done(entry) * config.train.batch_size
        values = flat(to_plain(config))
        settings = " ".join(f"{key}={values[key]}" for key in changing)
        active = sum(active_counts(config, model))
        rows.append((cell.name, settings, f"{active:,}", f"{memory / 2**30:.2f}", f"{count:,}", entry.found))
    states = [entry.found for entry in placed]
    summary = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    head = ("cell", "settings", "active", "GiB", "rollouts", "state")
    largest, cell, parts = max(memories, key=lambda found: found[0])
    total = f"{len(cells)} cells: {summary}; {rollouts:,} rollouts to generate; up to {largest / 2**30:.2f} GiB per cell (estimate)"
    lines = [str(need) for need in needs(cells, models, card) if need.cells > 1 and card is None]
    if card is not None:
        lines += [
            f"{cell.name}: "
            + ", ".join(f"{part} {size / 2**30:.1f}" for part, size in parts.items() if size)
            + " GiB; process is host memory"
        ]
        for need in needs(cells, models, card):
            lines.append(f"{need}: " + ("fits" if need.needed <= need.there else f"does not fit; {remedy(need, cells, models)}"))
    return "\n".join([table(head, rows), total, *lines])


def _steps_done(entry: GridCell) -> int:
    """Steps that the cell's folder, or the shorter run that it extends, has in its journal."""
    journal = read_journal(entry.beginning_dir or entry.dir)
    return journal[-1].step if journal else 0


def _changing(cells: Sequence[Cell]) -> list[str]:
    """Keys whose values differ between cells."""
    plain = [flat(to_plain(cell.config)) for cell in cells]
    return [key for key in plain[0] if len({str(values.get(key)) for values in plain}) > 1]
