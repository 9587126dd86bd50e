"""Hold what came out against what was printed (or recorded), and say for each cell whether it agrees."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from reproduce.errors import UserError
from reproduce.files import write_atomic, write_json
from reproduce.harness import baseline, results, statistics
from reproduce.harness.baseline import Recorded
from reproduce.harness.plan import Cell, Plan, Run
from reproduce.harness.statistics import Verdict
from reproduce.harness.tables import Column, Margin, Row, Table

AGREES, DISAGREES, INCOMPLETE = 0, 1, 3
"""Exit statuses of a check, beside 2 for a wrong request (DESIGN.md, Contracts)."""

MEANING = {
    AGREES: "every cell that ran agrees",
    DISAGREES: "some cells do not agree",
    INCOMPLETE: "a needed run failed or is missing",
}

SAME = {Verdict.REPRODUCED, Verdict.WITHIN}
DIFFERENT = {Verdict.BETTER, Verdict.WORSE, Verdict.INCONCLUSIVE}

SYMBOLS = {
    Verdict.REPRODUCED: "●",
    Verdict.WITHIN: "✓",
    Verdict.BETTER: "▲",
    Verdict.WORSE: "▼",
    Verdict.INCONCLUSIVE: "◆",
    Verdict.NO_BASELINE: "◌",
    Verdict.NOT_RUN: "○",
    Verdict.FAILED: "✕",
    Verdict.UNAVAILABLE: "∅",
    Verdict.REPORTED: "·",
}


@dataclass(frozen=True)
class Judged:
    """The verdict on one cell, with all that it rests on. Numbers are in the column's unit."""

    verdict: Verdict
    reason: str
    needed: bool = False
    """Whether runs of ours should have made this number."""
    printed: float | None = None
    expected: float | None = None
    values: dict[int, float] = field(default_factory=dict)
    """By seed."""
    mean: float | None = None
    sd: float | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    interval_of: str = ""
    margin: Margin | None = None
    run_ids: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Checked:
    """One table with its verdicts, by row and column. None is a dash in the paper."""

    table: Table
    cells: list[dict[str, Judged | None]]

    def judged(self) -> Iterator[tuple[Row, str, Judged]]:
        """Every cell that is not a dash."""
        for row, cells in zip(self.table.rows, self.cells, strict=True):
            for key, judged in cells.items():
                if judged:
                    yield row, key, judged

    def score(self) -> Counter[str]:
        """How many cells have which verdict."""
        return Counter(str(judged.verdict) for _, _, judged in self.judged())


def check(plan: Plan) -> list[Checked]:
    """Judge every cell of a plan's tables. Raises `UserError` for a result that is cut short or lacks its metric."""
    recorded = baseline.load(plan.request.scale)
    made = {(cell.table, cell.row, cell.column): cell for cell in plan.cells}
    return [
        Checked(table, _held_to_controls(table, [_judge_row(plan, table, row, made, recorded) for row in table.rows]))
        for table in plan.tables.values()
    ]


def exit_status(checked: list[Checked]) -> int:
    """0: every cell that ran agrees; 1: some cell does not; 3: a needed run failed or is missing."""
    judged = [judged for table in checked for _, _, judged in table.judged()]
    if any(cell.needed and cell.verdict in (Verdict.FAILED, Verdict.NOT_RUN) for cell in judged):
        return INCOMPLETE
    return DISAGREES if any(cell.verdict in DIFFERENT for cell in judged) else AGREES


def _judge_row(
    plan: Plan, table: Table, row: Row, made: dict[tuple[str, str, str], Cell], recorded: Recorded
) -> dict[str, Judged | None]:
    return {
        key: _judge(plan, table, row, key, made.get((table.table, row.method, key)), recorded)
        if table.has_cell(row, key)
        else None
        for key in table.columns
    }


def _held_to_controls(table: Table, cells: list[dict[str, Judged | None]]) -> list[dict[str, Judged | None]]:
    """A judged number that does not clearly beat its row's control is `worse`: seeds spread, learning must not stop."""
    by_method = {row.method: judged for row, judged in zip(table.rows, cells, strict=True)}
    for row, judged in zip(table.rows, cells, strict=True):
        for key, ours in judged.items():
            control = by_method[row.beats][key] if row.beats else None
            if not (ours and control and ours.verdict in (Verdict.WITHIN, Verdict.BETTER)):
                continue
            if ours.mean is None or control.mean is None:
                continue
            ahead = ours.mean - control.mean
            if ahead <= row.beats_by_points:
                reason = f"{ahead:+.1f} points from {row.beats}; what is learned beats it by {row.beats_by_points:g}."
                judged[key] = replace(ours, verdict=Verdict.WORSE, reason=reason)
    return cells


def _judge(plan: Plan, table: Table, row: Row, key: str, cell: Cell | None, recorded: Recorded) -> Judged:
    column = table.columns[key]
    printed = row.cells.get(key)
    if cell is None:
        return _not_ours(row, column, printed)
    run_ids = list(cell.runs.values())
    runs = {seed: plan.runs[name] for seed, name in cell.runs.items()}
    if failure := next(filter(None, (_failure(plan, run) for run in runs.values())), None):
        return Judged(Verdict.FAILED, failure, needed=True, printed=printed, run_ids=run_ids)
    found = {seed: results.read(run) for seed, run in runs.items()}
    if missing := [runs[seed].label for seed, result in found.items() if result is None]:
        reason = f"No result yet: {'; '.join(missing)}."
        return Judged(Verdict.NOT_RUN, reason, needed=True, printed=printed, run_ids=run_ids)
    values = {seed: _metric(runs[seed], result, cell.metric) for seed, result in found.items() if result is not None}
    ours = {
        "needed": True,
        "printed": printed,
        "values": values,
        "mean": statistics.mean(list(values.values())),
        "sd": statistics.sd(list(values.values())),
        "run_ids": run_ids,
    }
    if table.expected == "printed":
        assert printed is not None and column.margin is not None
        return _against_printed(list(values.values()), printed, column.margin, ours)
    return _against_recorded(plan, cell, list(values.values()), recorded, ours)


def _against_printed(values: list[float], printed: float, margin: Margin, ours: dict[str, Any]) -> Judged:
    verdict = statistics.against_printed(values, printed, margin.points)
    several = statistics.mean_interval(values) if len(values) > 1 else None
    seeds = f"The 90% interval of {len(values)} seeds" if several else "One seed"
    place = {
        Verdict.REPRODUCED: "lies inside the margin",
        Verdict.WITHIN: "is inside the margin",
        Verdict.BETTER: "lies above the margin",
        Verdict.WORSE: "lies below the margin",
        Verdict.INCONCLUSIVE: "straddles an edge of the margin; more seeds would tell",
    }[verdict]
    return Judged(
        verdict,
        f"{seeds} {place} of {margin.points} points around {printed}.",
        expected=printed,
        difference=ours["mean"] - printed,
        interval=(several.low, several.high) if several else None,
        interval_of="the mean of our seeds, 90%" if several else "",
        margin=margin,
        **ours,
    )


def _against_recorded(plan: Plan, cell: Cell, values: list[float], recorded: Recorded, ours: dict[str, Any]) -> Judged:
    if not plan.own_pictures:
        return Judged(Verdict.NO_BASELINE, "Not the pictures of this scale: nothing to compare with.", **ours)
    known = recorded.cells.get(cell.key)
    if known is None:
        return Judged(Verdict.NO_BASELINE, "Nothing is recorded for this cell yet.", **ours)
    unchanged = statistics.prediction_interval(known.values, len(values), known.num_test_images, len(recorded.cells))
    verdict = statistics.against_recorded(values, unchanged)
    expected = statistics.mean(known.values)
    place = {Verdict.WITHIN: "inside", Verdict.BETTER: "above", Verdict.WORSE: "below"}[verdict]
    num_seeds = len(known.values)
    reason = (
        f"{place.capitalize()} the interval in which new seeds of unchanged code fall ({num_seeds} recorded seeds)."
    )
    if recorded.header["seeds"][0] in plan.request.seeds and known.run_id not in cell.runs.values():
        reason += " The config has changed since the recording."
    return Judged(
        verdict,
        reason,
        expected=expected,
        difference=ours["mean"] - expected,
        interval=(unchanged.low, unchanged.high),
        interval_of="new seeds of unchanged code, 99% over all cells together",
        **ours,
    )


def _not_ours(row: Row, column: Column, printed: float | None) -> Judged:
    """A cell that no run of ours makes, and why."""
    if row.reported:
        return Judged(Verdict.REPORTED, row.reported, printed=printed)
    if row.unavailable:
        return Judged(Verdict.UNAVAILABLE, row.unavailable, printed=printed)
    return Judged(Verdict.NOT_RUN, row.not_run or column.not_run, printed=printed)


def _failure(plan: Plan, run: Run) -> str | None:
    """Why a run has no result, if it or its pretraining failed."""
    for each in (*(plan.runs[name] for name in run.parents), run):
        if not each.result.exists() and (failure := results.read_failure(each)):
            return f"{each.label} {failure['status']}: {failure['message']}"
    return None


def _metric(run: Run, result: dict[str, Any], name: str) -> float:
    try:
        return float(result["metrics"][name])
    except KeyError as error:
        raise UserError(f"{run.result} has no metric {name!r}; delete it and run the same command again") from error


def write(plan: Plan, checked: list[Checked]) -> list[Checked]:
    """Write `tableN.json`, `tableN.md` and `junit.xml`; return the tables that say something new."""
    news = []
    for table in checked:
        stem = plan.reports / table.table.table
        data = as_data(plan, table)
        if not _same_as_before(stem.with_suffix(".json"), data):
            news.append(table)
        write_json(stem.with_suffix(".json"), data)
        write_atomic(stem.with_suffix(".md"), as_markdown(plan, table))
    write_atomic(plan.reports / "junit.xml", as_junit(checked))
    return news


def _same_as_before(path: Path, data: dict[str, Any]) -> bool:
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    now = json.loads(json.dumps(data))
    return bool({**before, "checked": ""} == {**now, "checked": ""})


def as_data(plan: Plan, checked: Checked) -> dict[str, Any]:
    """A table with its verdicts as plain data: what the report, W&B and others read."""
    recorded = baseline.load(plan.request.scale)
    table = checked.table
    return {
        "table": table.table,
        "title": table.title,
        "caption": table.caption,
        "section": table.section,
        "scale": plan.request.scale,
        "level": "L1",
        "expected": table.expected,
        "seeds": list(plan.request.seeds),
        "checked": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": baseline.git("rev-parse", "HEAD"),
        "dirty": bool(baseline.git("status", "--porcelain")),
        "recorded": recorded.header if table.expected == "recorded" else {},
        "score": dict(checked.score()),
        "columns": {key: asdict(column) for key, column in table.columns.items()},
        "runs": [
            {"run_id": run.run_id, "kind": run.kind, "label": run.label, "folder": run.folder, "parents": run.parents}
            for run in plan.runs_of(table.table)
        ],
        "rows": [
            {
                "method": row.method,
                "pretrain": row.pretrain,
                "note": row.note,
                "rerun_by_authors": row.rerun_by_authors,
                "cells": {key: asdict(judged) if judged else None for key, judged in cells.items()},
            }
            for row, cells in zip(table.rows, checked.cells, strict=True)
        ],
    }


def as_markdown(plan: Plan, checked: Checked) -> str:
    """A table as the paper prints it, ours beside it, for a terminal or a pull request."""
    table = checked.table
    number = table.table.removeprefix("table")
    lines = [f"## Table {number}: {table.title}", "", f"Scale {plan.request.scale}. {table.caption}", ""]
    heads = [f"{column.title} ({column.unit})" for column in table.columns.values()]
    lines += ["| " + " | ".join(["Method", *heads]) + " |", "|---" * (len(heads) + 1) + "|"]
    for row, cells in zip(table.rows, checked.cells, strict=True):
        shown = [_in_words(judged, table.columns[key], key in row.rerun_by_authors) for key, judged in cells.items()]
        lines.append("| " + " | ".join([row.method, *shown]) + " |")
    lines += ["", "Expected, then ours. " + "; ".join(f"{SYMBOLS[v]} {v}" for v in Verdict if checked.score()[v]) + "."]
    if any(row.rerun_by_authors for row in table.rows):
        lines.append("† run by the paper's authors.")
    return "\n".join(lines) + "\n"


def _in_words(judged: Judged | None, column: Column, dagger: bool) -> str:
    if judged is None:
        return "–"
    expected = judged.expected if judged.expected is not None else judged.printed
    theirs = "" if expected is None else f"{expected:.{column.decimals}f}" + ("†" if dagger else "")
    if judged.mean is None:
        return f"{theirs} {SYMBOLS[judged.verdict]} {judged.verdict}".strip()
    spread = "" if judged.sd is None else f" ± {judged.sd:.{column.decimals}f}"
    ours = f"**{judged.mean:.{column.decimals}f}**{spread} {SYMBOLS[judged.verdict]} {judged.verdict}"
    return f"{theirs} → {ours}" if theirs else ours


def as_text(checked: Checked) -> str:
    """The cells that runs of ours make, a line each, and how many others there are."""
    table = checked.table
    lines = [f"\nTable {table.table.removeprefix('table')}: {table.title}"]
    ours = [(row, key, judged) for row, key, judged in checked.judged() if judged.needed]
    names = [f"{row.method}, {table.columns[key].title}" for row, key, _ in ours]
    for name, (_, key, judged) in zip(names, ours, strict=True):
        line = f"  {SYMBOLS[judged.verdict]} {judged.verdict:<12} {name:<{max(map(len, names))}}"
        if judged.mean is not None:
            line += f"  {judged.mean:7.2f}"
        if judged.expected is not None and judged.difference is not None:
            line += f"  expected {judged.expected:.{table.columns[key].decimals}f} ({judged.difference:+.2f})"
        if judged.interval:
            line += f"  [{judged.interval[0]:.1f}, {judged.interval[1]:.1f}]"
        lines.append(line if judged.mean is not None else f"{line}  {judged.reason}")
    others = Counter(str(judged.verdict) for _, _, judged in checked.judged() if not judged.needed)
    if others:
        lines.append("  other cells: " + ", ".join(f"{count} {verdict}" for verdict, count in sorted(others.items())))
    return "\n".join(lines)


def as_junit(checked: list[Checked]) -> str:
    """The verdicts as test cases, for CI pages."""
    root = ElementTree.Element("testsuites", name="reproduce")
    for table in checked:
        suite = ElementTree.SubElement(root, "testsuite", name=table.table.table)
        for row, key, judged in table.judged():
            case = ElementTree.SubElement(suite, "testcase", classname=table.table.table, name=f"{row.method} / {key}")
            kind = {**dict.fromkeys(SAME, None), **dict.fromkeys(DIFFERENT, "failure")}.get(
                judged.verdict, "error" if judged.needed and judged.verdict != Verdict.NO_BASELINE else "skipped"
            )
            if kind:
                ElementTree.SubElement(case, kind, message=f"{judged.verdict}: {judged.reason}")
        for count, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            suite.set(count, str(len(suite.findall(f".//{tag}"))))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def track(plan: Plan, checked: list[Checked]) -> str | None:
    """Log the verdicts to W&B, a run per table; the reason where that fails, for it must not touch the verdicts."""
    try:
        for table in checked:
            _track(plan, table)
    except Exception as error:  # noqa: BLE001  # whatever the service or its client does
        return f"{type(error).__name__}: {error}"
    return None


def _track(plan: Plan, table: Checked) -> None:
    from reproduce.engine import tracking

    columns = ["row", "column", "expected", "ours", "sd", "difference", "verdict", "reason", "runs"]
    rows = [
        [
            *(row.method, key, judged.expected if judged.expected is not None else judged.printed, judged.mean),
            *(judged.sd, judged.difference, str(judged.verdict), judged.reason, " ".join(judged.run_ids)),
        ]
        for row, key, judged in table.judged()
    ]
    tracking.log_table(table.table.table, plan.request.scale, plan.reports, columns, rows)
