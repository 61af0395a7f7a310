"""What a grid will cost, before it is launched: cells, active parameters, memory, rollouts, what is finished already."""

from collections.abc import Mapping, Sequence

from mth.config.cells import Cell
from mth.config.stored import flat, to_plain
from mth.grid.capacity import needs
from mth.grid.memory import ModelFacts, active_counts, memory_estimate
from mth.grid.placement import TO_DO
from mth.grid.record import GridCell
from mth.grid.show import table
from mth.runs.journal import read_journal


def plan_table(cells: Sequence[Cell], placed: Sequence[GridCell], models: Mapping[str, ModelFacts]) -> str:
    """One line per cell, and the totals. models: from `preflight`."""
    changing = _changing(cells)
    rows, rollouts, memories = [], 0, []
    for cell, entry in zip(cells, placed, strict=True):
        config, model = cell.config, models[repr(cell.config.model)]
        memory = sum(memory_estimate(config, model).values())
        memories.append(memory)
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
    total = f"{len(cells)} cells: {summary}; {rollouts:,} rollouts to generate; up to {max(memories) / 2**30:.2f} GiB per cell (estimate)"
    return "\n".join([table(head, rows), total, *(str(need) for need in needs(cells, models) if need.cells > 1)])


def _steps_done(entry: GridCell) -> int:
    """Steps that the cell's folder, or the shorter run that it extends, has in its journal."""
    journal = read_journal(entry.beginning_dir or entry.dir)
    return journal[-1].step if journal else 0


def _changing(cells: Sequence[Cell]) -> list[str]:
    """Keys whose values differ between cells."""
    plain = [flat(to_plain(cell.config)) for cell in cells]
    return [key for key in plain[0] if len({str(values.get(key)) for values in plain}) > 1]
