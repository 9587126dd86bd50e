"""Hold what came out against what was printed (or recorded), and say for each cell whether it agrees."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from reproduce.files import write_atomic, write_json
from reproduce.harness import revision
from reproduce.harness.plan.model import Plan
from reproduce.harness.plan.run_state import valid_result
from reproduce.harness.report import claims as show_claims
from reproduce.harness.report import summary
from reproduce.harness.spec import baseline, tables
from reproduce.harness.spec.tables import Column, Row, Table
from reproduce.harness.verdict import canary
from reproduce.harness.verdict import stats as statistics
from reproduce.harness.verdict.canary import Song
from reproduce.harness.verdict.cells import Evidence, Judged, judge
from reproduce.harness.verdict.claims import Answer, Standing
from reproduce.harness.verdict.stats import Verdict

AGREES, DISAGREES, INCOMPLETE = 0, 1, 3
"""Exit statuses of a check, beside 2 for a wrong request (DESIGN.md, Contracts)."""

MEANING = {
    AGREES: "every cell that ran agrees",
    DISAGREES: "some cells do not agree, or claims are contradicted",
    INCOMPLETE: "a needed run failed or is missing",
}

SAME = {Verdict.REPRODUCED, Verdict.WITHIN, Verdict.EXPECTED_FAILURE}
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
    Verdict.EXPECTED_FAILURE: "⊗",
}


@dataclass(frozen=True)
class Checked:
    """One table with its verdicts, by row and column. None is a dash in the paper."""

    table: Table
    cells: list[dict[str, Judged | None]]
    undrawn: list[str] = field(default_factory=list)
    """Runs whose curves a figure needs and that have no result."""

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
    evidence = Evidence.of(plan)
    return [_check_table(evidence, table) for table in plan.tables.values()]


def _check_table(evidence: Evidence, table: Table) -> Checked:
    plan = evidence.plan
    cells = [_judge_row(evidence, table, row) for row in table.rows]
    drawn = [cell for cell in plan.cells if cell.table == table.table and not cell.column]
    runs = [plan.runs[name] for cell in drawn for name in cell.runs.values()]
    undrawn = [run.label for run in runs if valid_result(plan, run) is None]
    corrected = _corrected_for_many(_held_to_controls(table, cells))
    return Checked(table, _held_to_canaries(plan, table, corrected), undrawn)


def again(checked: Sequence[Checked]) -> str:
    """How many cells are what their seeds gave when they were recorded; empty where none can be."""
    told = [cell.as_recorded for table in checked for _, _, cell in table.judged() if cell.as_recorded is not None]
    return f"{sum(told)} of {len(told)} cells give their recorded seeds' numbers again, to the digit" if told else ""


def exit_status(checked: list[Checked], answers: Sequence[Answer] = (), claims_asked: bool = False) -> int:
    """0: every cell that ran agrees; 1: some cell does not, or a claim is contradicted; 3: a needed run is missing.

    Runs that only a claim needs are needed where the claims were asked for.
    """
    judged = [judged for table in checked for _, _, judged in table.judged()]
    missing = any(cell.needed and cell.verdict in (Verdict.FAILED, Verdict.NOT_RUN) for cell in judged)
    missing = missing or (claims_asked and any(answer.lacking for answer in answers))
    if missing or any(table.undrawn for table in checked):
        return INCOMPLETE
    if any(answer.standing == Standing.CONTRADICTED for answer in answers):
        return DISAGREES
    return DISAGREES if any(cell.verdict in DIFFERENT for cell in judged) else AGREES


def _judge_row(evidence: Evidence, table: Table, row: Row) -> dict[str, Judged | None]:
    return {key: judge(evidence, table, row, key) if table.has_cell(row, key) else None for key in table.columns}


def _held_to_canaries(
    plan: Plan, table: Table, cells: list[dict[str, Judged | None]]
) -> list[dict[str, Judged | None]]:
    """No number counts as reproduced before the authors' own checkpoint gave theirs under the same evaluation."""
    songs: dict[str, Song] = {}
    for row in cells:
        for key, judged in row.items():
            if not (judged and judged.margin and table.columns[key].eval and not judged.share_of):
                continue
            run = plan.runs[judged.run_ids[0]]
            if run.name not in songs:
                songs[run.name] = canary.listen(run)
            song = songs[run.name]
            verdict, reason = judged.verdict, f"Its canary agreed: {song.reason}."
            if song.state == "missing":
                verdict = Verdict.WITHIN if verdict == Verdict.REPRODUCED else verdict
                reason = f"Not preceded by its canary, so it does not count as reproduced: {song.reason}."
            elif song.state == "disagreed":
                verdict = Verdict.INCONCLUSIVE
                reason = f"But its canary disagrees, so the evaluation itself is in doubt: {song.reason}."
            row[key] = replace(judged, verdict=verdict, canary=song.state, reason=f"{judged.reason} {reason}")
    return cells


def _held_to_controls(table: Table, cells: list[dict[str, Judged | None]]) -> list[dict[str, Judged | None]]:
    """A number of a scale's own that does not clearly beat its row's control is `worse`, recorded or not.

    Seeds spread, learning must not stop. The points are those of the scale's own pictures: on others the difference is
    only told. Where the recorded interval holds every percentage, the reason says that only the control is left.
    """
    by_label = {row.label: judged for row, judged in zip(table.rows, cells, strict=True)}
    for row, judged in zip(table.rows, cells, strict=True):
        for key, ours in judged.items():
            control = by_label[row.control][key] if row.control and table.columns[key].has_control else None
            if ours and table.expected == "recorded":
                judged[key] = _held_to_control(row, ours, control)
    return cells


def _held_to_control(row: Row, ours: Judged, control: Judged | None) -> Judged:
    if ours.mean is None or ours.verdict not in (Verdict.WITHIN, Verdict.BETTER, Verdict.NO_BASELINE):
        return ours
    says_nothing = ours.interval is not None and ours.interval[0] <= 0 and ours.interval[1] >= 100
    alone = "The recorded seeds spread so widely that their interval is [0, 100], which says nothing; "
    if control is None or control.mean is None:
        nothing = f"{alone}{f'{row.control} has no number to beat yet' if control else 'no control is set here'}."
        return replace(ours, reason=f"{ours.reason} {nothing}") if says_nothing else ours
    ahead, bar = ours.mean - control.mean, f"{row.min_points_above_control:g}"
    told = f"{ahead:+.1f} points from {row.control}"
    if ours.other_pictures:
        return replace(ours, reason=f"{ours.reason} {told}; the bar of {bar} is for the scale's own.")
    if ahead <= row.min_points_above_control:
        return replace(ours, verdict=Verdict.WORSE, reason=f"{told}; what is learned beats it by {bar}.")
    if says_nothing:
        return replace(ours, reason=f"{ours.reason} {alone}the verdict rests on the control alone, {told}.")
    if ours.verdict == Verdict.NO_BASELINE:
        return replace(ours, reason=f"{ours.reason} It beats its control: {told}, more than {bar}.")
    return ours


def _corrected_for_many(cells: list[dict[str, Judged | None]]) -> list[dict[str, Judged | None]]:
    """Holm's correction over a table: each cell of several seeds that is held to a margin makes one claim.

    The family is all such cells of the table, whatever they claim; a cell whose adjusted p-value exceeds 5% is
    `inconclusive`. Cells held against recorded numbers have a family level of their own (`prediction_interval`).
    """
    claims = [
        (row, key, judged, judged.p_value)
        for row in cells
        for key, judged in row.items()
        if judged and judged.margin and judged.p_value is not None
    ]
    adjusted = statistics.holm([p_value for *_, p_value in claims])
    for (row, key, judged, _), p_value in zip(claims, adjusted, strict=True):
        row[key] = replace(judged, p_value=p_value)
        if p_value > statistics.SIGNIFICANCE and judged.verdict != Verdict.INCONCLUSIVE:
            reason = f"{judged.reason} But not after Holm's correction over {len(claims)} cells (p = {p_value:.3f})."
            row[key] = replace(judged, p_value=p_value, verdict=Verdict.INCONCLUSIVE, reason=reason)
    return cells


@dataclass(frozen=True)
class News:
    """What a check found that an earlier one had not."""

    tables: list[Checked]
    claims: list[Answer]


def write(plan: Plan, checked: list[Checked], answers: Sequence[Answer] = ()) -> News:
    """Write each table's JSON and Markdown, the claims', `junit.xml` and `summary.md`; return what of it is new."""
    news = []
    for table in checked:
        stem = plan.reports / table.table.table
        data = as_data(plan, table)
        if not _same_as_before(stem.with_suffix(".json"), data):
            news.append(table)
        write_json(stem.with_suffix(".json"), data)
        write_atomic(stem.with_suffix(".md"), as_markdown(plan, table))
    changed = show_claims.write(plan, answers) if answers else []
    write_atomic(plan.reports / "junit.xml", as_junit(checked, answers, bool(plan.claims)))
    summary.write(plan.reports, plan.request.scale, SYMBOLS)
    return News(news, changed)


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
        "heading": table.heading,
        "sha256": tables.sha256(table.table, plan.request.scale),
        "title": table.title,
        "caption": table.caption,
        "section": table.section,
        "scale": plan.request.scale,
        "level": plan.level,
        "expected": table.expected,
        "seeds": list(plan.request.seeds),
        "checked": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": revision.commit(),
        "dirty": revision.dirty(),
        "recorded": recorded.header if table.expected == "recorded" else {},
        "score": dict(checked.score()),
        "plots": table.plots,
        "undrawn": checked.undrawn,
        "errata": table.errata,
        "columns": {key: asdict(column) for key, column in table.columns.items()},
        "runs": [
            {
                "run_id": run.run_id,
                "kind": run.kind,
                "label": run.label,
                "folder": run.folder,
                "parents": run.parents,
                "outdated": run.result.exists() and not valid_result(plan, run),
            }
            for run in plan.runs_of(table.table)
        ],
        "rows": [
            {
                "label": row.label,
                "method": row.method,
                "variant": row.variant,
                "pretrain": row.pretrain,
                "weights": row.weights,
                "note": row.note,
                "rerun_by_authors": row.rerun_by_authors,
                "cells": {key: _cell_as_data(judged, table.columns[key]) for key, judged in cells.items()},
            }
            for row, cells in zip(table.rows, checked.cells, strict=True)
        ],
    }


def _cell_as_data(judged: Judged | None, column: Column) -> dict[str, Any] | None:
    return asdict(judged) | {"expected_in_words": expected_in_words(judged, column)} if judged else None


def as_markdown(plan: Plan, checked: Checked) -> str:
    """A table as the paper prints it, ours beside it, for a terminal or a pull request."""
    table = checked.table
    lines = [f"## {table.heading}: {table.title}", "", f"Scale {plan.request.scale}. {table.caption}", ""]
    heads = [
        f"{column.title} ({column.unit}{f', mean of {column.num_runs} runs' if column.num_runs > 1 else ''})"
        for column in table.columns.values()
    ]
    lines += ["| " + " | ".join(["Method", *heads]) + " |", "|---" * (len(heads) + 1) + "|"]
    for row, cells in zip(table.rows, checked.cells, strict=True):
        shown = [_in_words(judged, table.columns[key], key in row.rerun_by_authors) for key, judged in cells.items()]
        lines.append("| " + " | ".join([row.label, *shown]) + " |")
    lines += [f"\nNot drawn yet, no result: {'; '.join(checked.undrawn)}."] if checked.undrawn else []
    if not table.columns:
        return "\n".join(lines) + "\n"
    lines += ["", "Expected, then ours. " + "; ".join(f"{SYMBOLS[v]} {v}" for v in Verdict if checked.score()[v]) + "."]
    if any(row.rerun_by_authors for row in table.rows):
        lines.append("† run by the paper's authors.")
    if _without_canary(checked):
        lines.append(canary.FOOTNOTE)
    lines += [f"Erratum of the paper: {text}" for text in table.errata]
    return "\n".join(lines) + "\n"


def _without_canary(checked: Checked) -> bool:
    return any(judged.canary == "missing" for _, _, judged in checked.judged())


def _in_words(judged: Judged | None, column: Column, dagger: bool) -> str:
    if judged is None:
        return "–"
    theirs = expected_in_words(judged, column)
    theirs += "†" if dagger and theirs else ""
    if judged.mean is None:
        return f"{theirs} {SYMBOLS[judged.verdict]} {judged.verdict}".strip()
    spread = "" if judged.sd is None else f" ± {judged.sd:.{column.decimals}f}"
    mark = "°" if judged.canary == "missing" else ""
    ours = f"**{judged.mean:.{column.decimals}f}**{spread} {SYMBOLS[judged.verdict]} {judged.verdict}{mark}"
    return f"{theirs} → {ours}" if theirs else ours


def expected_in_words(judged: Judged, column: Column) -> str:
    """What a cell is held against, as the paper prints it; empty where there is nothing."""
    if judged.share_of and judged.expected is not None:
        return f"{judged.expected:.2f} of {judged.share_of} (printed {judged.printed})"
    if isinstance(judged.printed, str):
        return judged.printed
    expected = judged.expected if judged.expected is not None else judged.printed
    if expected is None:
        return ""
    decimals = column.decimals if expected == round(expected, column.decimals) else column.decimals + 1
    misprint = judged.printed is not None and expected != judged.printed
    return f"{expected:.{decimals}f}" + (f" (printed {judged.printed:.{column.decimals}f})" if misprint else "")


def as_text(checked: Checked) -> str:
    """The cells that runs of ours make, a line each, and how many others there are."""
    table = checked.table
    lines = [f"\n{table.heading}: {table.title}"]
    lines += [f"  {SYMBOLS[Verdict.NOT_RUN]} not drawn    {label}: no result yet" for label in checked.undrawn]
    ours = [(row, key, judged) for row, key, judged in checked.judged() if judged.needed]
    names = [f"{row.label}, {table.columns[key].title}" for row, key, _ in ours]
    for name, (_, key, judged) in zip(names, ours, strict=True):
        verdict = f"{judged.verdict}{'°' if judged.canary == 'missing' else ''}"
        line = f"  {SYMBOLS[judged.verdict]} {verdict:<12} {name:<{max(map(len, names))}}"
        if judged.mean is not None:
            line += f"  {judged.mean:7.2f}"
        if judged.expected is not None and judged.difference is not None:
            line += f"  expected {expected_in_words(judged, table.columns[key])} ({judged.difference:+.2f})"
        if judged.interval:
            line += f"  [{judged.interval[0]:.1f}, {judged.interval[1]:.1f}]"
        lines.append(line if judged.difference is not None else f"{line}  {judged.reason}")
    if _without_canary(checked):
        lines.append(f"  {canary.FOOTNOTE}")
    others = Counter(str(judged.verdict) for _, _, judged in checked.judged() if not judged.needed)
    if others:
        lines.append("  other cells: " + ", ".join(f"{count} {verdict}" for verdict, count in sorted(others.items())))
    return "\n".join(lines)


def as_junit(checked: list[Checked], answers: Sequence[Answer] = (), claims_asked: bool = False) -> str:
    """The verdicts as test cases, for CI pages."""
    root = ElementTree.Element("testsuites", name="reproduce")
    for table in checked:
        suite = ElementTree.SubElement(root, "testsuite", name=table.table.table)
        for row, key, judged in table.judged():
            case = ElementTree.SubElement(suite, "testcase", classname=table.table.table, name=f"{row.label} / {key}")
            kind = {**dict.fromkeys(SAME, None), **dict.fromkeys(DIFFERENT, "failure")}.get(
                judged.verdict, "error" if judged.needed and judged.verdict != Verdict.NO_BASELINE else "skipped"
            )
            if kind:
                ElementTree.SubElement(case, kind, message=f"{judged.verdict}: {judged.reason}")
    if answers:
        show_claims.add_to_junit(root, answers, claims_asked)
    for suite in root:
        for count, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            suite.set(count, str(len(suite.findall(f".//{tag}"))))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def track(plan: Plan, news: News) -> str | None:
    """Log new verdicts to W&B, a run for each table and one for the claims; the reason where that fails.

    It must not touch the verdicts.
    """
    try:
        for table in news.tables:
            _track(plan, table)
        if news.claims:
            show_claims.track(plan, news.claims)
    except Exception as error:  # noqa: BLE001  # whatever the service or its client does
        return f"{type(error).__name__}: {error}"
    return None


def _track(plan: Plan, table: Checked) -> None:
    from reproduce.engine.runs import tracking

    columns = ["row", "column", "expected", "ours", "sd", "difference", "verdict", "reason", "runs"]
    rows = [
        [
            *(row.label, key, _number_expected(judged), judged.mean),
            *(judged.sd, judged.difference, str(judged.verdict), judged.reason, " ".join(judged.run_ids)),
        ]
        for row, key, judged in table.judged()
    ]
    tracking.log_table(table.table.table, plan.request.scale, plan.reports, columns, rows)


def _number_expected(judged: Judged) -> float | None:
    return judged.expected if judged.expected is not None else tables.parse_printed(judged.printed)
