"""Tables as they were when results were made: what is edited after a result does not change its verdict.

A result names the commit of its code. If git knows that commit, printed numbers, errata, margins, controls and recorded
numbers are those of the tables at that commit, and what differs is named.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from reproduce.errors import UserError
from reproduce.harness import revision
from reproduce.harness.plan.model import Cell, Plan, Run
from reproduce.harness.plan.run_state import valid_result
from reproduce.harness.spec import baseline, tables
from reproduce.harness.spec.baseline import RecordedNumbers
from reproduce.harness.spec.tables import Margin, Row, Table
from reproduce.harness.verdict.notes import EditedSince
from reproduce.typed_yaml import parse_yaml

OF_ROW = ("control", "min_points_above_control")
OF_COLUMN = ("unit", "metric", "eval", "relative_to", "lower_is_better", "has_control", "num_runs")
"""What a verdict depends on, beside a cell's printed number, erratum and margin."""


@dataclass(frozen=True)
class EarlierTables:
    """The tables of a plan at the commits of its results."""

    plan: Plan
    _parsed: dict[tuple[str, str], Table | None] = field(default_factory=dict, compare=False, repr=False)
    _recordings: dict[str, RecordedNumbers] = field(default_factory=dict, compare=False, repr=False)

    def as_judged(self, table: Table) -> tuple[Table, dict[tuple[str, str], EditedSince]]:
        """Return the table to judge by, and by row and column what was edited since the results were made.

        Of several results, the one that finished first decides. Margins are left to `margins`: the narrowest counts.
        """
        rows = {row.label: row for row in table.rows}
        columns, notes = dict(table.columns), {}
        for cell in (cell for cell in self.plan.cells if cell.table == table.table and cell.column):
            for commit, earlier in self._of_cell(cell):
                then = next((row for row in earlier.rows if row.label == cell.row), None)
                if then is None or cell.column not in earlier.columns:
                    continue
                now, key = rows[cell.row], cell.column
                edits = list(_edits(table, earlier, cell))
                if edits:
                    notes[cell.row, key] = EditedSince(commit[:12], tuple(edits))
                    errata = {name: each for name, each in now.errata.items() if name != key}
                    errata |= {key: then.errata[key]} if key in then.errata else {}
                    cells = dict(now.cells) | ({key: then.cells[key]} if key in then.cells else {})
                    same = {name: getattr(then, name) for name in OF_ROW if _is_row(table, then.control)}
                    rows[cell.row] = replace(now, cells=cells, errata=errata, **same)
                    of_column = {
                        name: getattr(earlier.columns[key], name) for name in ("lower_is_better", "has_control")
                    }
                    columns[key] = replace(columns[key], **of_column)
                break
        return replace(table, rows=list(rows.values()), columns=columns), notes

    def margins(self, cell: Cell) -> Iterator[tuple[str, float]]:
        """Yield the run_id and the points of the margin at the commit of every result behind a cell."""
        for run_id in cell.run_ids:
            commit = self._commit(run_id)
            earlier = self._at(commit, cell.table)
            row = next((row for row in earlier.rows if row.label == cell.row), None) if earlier else None
            if earlier and row and cell.column in earlier.columns:
                margin = earlier.margin(row, cell.column, self._public_margins(commit))
                if margin:
                    yield run_id, margin.points

    def recorded(self, cell: Cell, now: RecordedNumbers) -> tuple[RecordedNumbers, EditedSince | None]:
        """Return the recorded numbers to judge a cell by, and what was edited since the results were made.

        They are those of the commit of the first result, unless that commit's code made the recording of today, or has
        none of this config.
        """
        known = now.cells.get(cell.metric_key)
        for run, _ in self._results(cell):
            commit = self._commit(run.run_id)
            earlier = self._recorded_at(commit)
            then = earlier.cells.get(cell.metric_key)
            of_config = known.run_id if known else run.run_id
            if then is None or commit in now.commits or then.run_id != of_config or then == known:
                break
            edits = [
                f"recorded {name} {_of_numbers(before)}, now {_of_numbers(after)}"
                for name, before, after in (
                    ("values", then.values, known.values if known else ()),
                    ("values of the same seed", then.same_seed, known.same_seed if known else ()),
                )
                if list(before) != list(after)
            ]
            return earlier, EditedSince(commit[:12], tuple(edits or ["number of recorded test images"]))
        return now, None

    def _recorded_at(self, commit: str) -> RecordedNumbers:
        """Return the numbers recorded at a commit; none if git does not know it, or if this version can't read them."""
        if commit not in self._recordings:
            scale = self.plan.request.scale
            text = revision.file_at(commit, f"tables/{scale}/recorded.yaml")
            try:
                found = baseline.parse(text, baseline.path(scale)) if text else RecordedNumbers()
            except UserError:
                found = RecordedNumbers()
            self._recordings[commit] = found
        return self._recordings[commit]

    def _results(self, cell: Cell) -> list[tuple[Run, Mapping[str, Any]]]:
        """Return the runs behind a cell that have valid results, the one that finished first in front."""
        runs = [self.plan.runs[name] for name in cell.run_ids]
        found = [(run, result) for run in runs if (result := valid_result(self.plan, run))]
        return sorted(found, key=lambda each: str(each[1].get("finished") or ""))

    def _of_cell(self, cell: Cell) -> Iterator[tuple[str, Table]]:
        for run, _ in self._results(cell):
            commit = self._commit(run.run_id)
            if earlier := self._at(commit, cell.table):
                yield commit, earlier

    def _commit(self, run_id: str) -> str:
        result = valid_result(self.plan, self.plan.runs[run_id]) or {}
        return str(result.get("provenance", {}).get("git_commit") or "")

    def _at(self, commit: str, name: str) -> Table | None:
        """Return a table at a commit; None if git does not know it, or if this version can't read it."""
        if (commit, name) not in self._parsed:
            path = tables.TABLES_DIR / self.plan.request.scale / f"{name}.yaml"
            text = revision.file_at(commit, f"tables/{self.plan.request.scale}/{name}.yaml")
            try:
                self._parsed[commit, name] = tables.parse(text, path) if text else None
            except UserError:
                self._parsed[commit, name] = None
        return self._parsed[commit, name]

    def _public_margins(self, commit: str) -> dict[str, Margin]:
        if self.plan.request.source != "released":
            return {}
        text = revision.file_at(commit, f"tables/{tables.PUBLIC_MARGINS}")
        try:
            found: dict[str, Margin] = parse_yaml(dict[str, Margin], text, tables.PUBLIC_MARGINS) if text else {}
        except UserError:
            return {}
        return found


def _is_row(table: Table, label: str) -> bool:
    return not label or any(row.label == label for row in table.rows)


def _edits(now: Table, then: Table, cell: Cell) -> Iterator[str]:
    """Yield a phrase for each thing that a verdict on a cell depends on and that two versions of a table differ in."""
    rows: list[Row] = [next(row for row in table.rows if row.label == cell.row) for table in (then, now)]
    columns = [table.columns[cell.column] for table in (then, now)]
    pairs: dict[str, list[Any]] = {"printed number": [row.cells.get(cell.column) for row in rows]}
    pairs["erratum"] = [each.value if (each := row.errata.get(cell.column)) else None for row in rows]
    pairs |= {name.replace("_", " "): [getattr(row, name) for row in rows] for name in OF_ROW}
    pairs |= {name.replace("_", " "): [getattr(column, name) for column in columns] for name in OF_COLUMN}
    for name, (before, after) in pairs.items():
        if before != after:
            yield f"{name} {_as_text(before)}, now {_as_text(after)}"


def _of_numbers(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.2f} (mean of {len(values)})" if values else "none"


def _as_text(value: Any) -> str:
    return "none" if value in (None, "") else str(value)
