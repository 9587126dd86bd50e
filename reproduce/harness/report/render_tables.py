"""A table's verdicts as data (JSON), as Markdown and as text for a terminal."""

import hashlib
from collections import Counter
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reproduce.config.schema import ABSENT
from reproduce.harness import revision
from reproduce.harness.plan.model import Plan, Run
from reproduce.harness.plan.run_state import valid_result
from reproduce.harness.report.rendering import markdown_row
from reproduce.harness.spec import baseline, tables
from reproduce.harness.spec.tables import Column, Row, Table
from reproduce.harness.verdict import notes, stats
from reproduce.harness.verdict.cells import CellVerdict
from reproduce.harness.verdict.check import TableVerdict
from reproduce.harness.verdict.first_steps import FirstStepsCheck
from reproduce.harness.verdict.labels import SYMBOLS, Verdict
from reproduce.harness.verdict.wording import INTERVALS, UNCHANGED, sentence

CANARY_MARK = "°"
CANARY_FOOTNOTE = "° its canary is missing or unverified (tables/canaries.yaml), so it does not count as reproduced."

NOTICES = "notices"
NOTICES_FOOTNOTE = f"{NOTICES} N: a fall of N points would be called worse with at least {stats.POWER:.0%} probability"


def table_as_data(plan: Plan, checked: TableVerdict, first_steps: FirstStepsCheck) -> dict[str, Any]:
    """Return a table with its verdicts as plain data: what the page and other programs read."""
    recorded = baseline.load(plan.request.scale)
    table = checked.table
    return {
        "table": table.table,
        "heading": table.heading,
        "sha256": tables.sha256(table.table, plan.request.scale),
        "title": table.title,
        "caption": table.caption,
        "images": other_images(plan, table),
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
        "chart": table.chart,
        "undrawn": list(checked.undrawn),
        "changed_curves": [sentence(note) for note in checked.changed_curves],
        "doubts": list(checked.doubts),
        "errata": table.errata,
        "columns": {key: asdict(column) for key, column in table.columns.items()},
        "runs": [
            {
                **result_as_judged(run),
                "run_id": run.run_id,
                "kind": run.kind,
                "parents": run.parents,
                "first_steps": steps.state if (steps := first_steps.runs.get(run.run_id)) else None,
                "outdated": run.result.exists() and not valid_result(plan, run),
            }
            for run in plan.runs_of(table.table)
        ],
        "rows": [
            {
                "label": row.label,
                "method": row.method,
                "variant": row.variant,
                "control": row.control,
                "pretrain": row.pretrain,
                "weights": row.weights,
                "note": row.note,
                "quotes": quotes(table, row),
                "rerun_by_authors": row.rerun_by_authors,
                "cells": {key: cell and _cell_as_data(cell, table.columns[key]) for key, cell in cells.items()},
            }
            for row, cells in zip(table.rows, checked.rows, strict=True)
        ],
    }


def other_images(plan: Plan, table: Table) -> str:
    """Return which images a table's runs read in place of those that its numbers are recorded of; "" if they do not."""
    if plan.uses_reference_data or table.expected != "recorded":
        return ""
    return ", ".join(
        sorted({run.workload.dataset.get("source", "") for run in plan.runs_of(table.table)} - {"", ABSENT})
    )


def on_other_images(images: str) -> str:
    """Return a sentence for a caption, which describes the table with the scale's own images."""
    return f"Here on other images ({images}), so nothing is compared."


def result_as_judged(run: Run) -> dict[str, str | None]:
    """Return a run's name for people, its folder and the hash of its result as plain data."""
    return {"label": run.label, "folder": run.folder, "result_sha256": result_sha256(run.result)}


def result_sha256(file: Path) -> str | None:
    """Return the SHA-256 of a result's file, by which a report sees whether it was judged; None without the file."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None


def quotes(table: Table, row: Row) -> list[str]:
    """Return a sentence for each other paper that numbers of a row are quoted from, headed by their columns."""
    columns: dict[str, list[str]] = {}
    for key, source in row.quoted_from.items():
        columns.setdefault(source, []).append(table.columns[key].title)
    return [f"{', '.join(titles)}: {source}" for source, titles in columns.items()]


def _cell_as_data(cell: CellVerdict, column: Column) -> dict[str, Any]:
    """Return a verdict's fields with its notes both as data and, under `reason`, in words."""
    data = {field.name: getattr(cell, field.name) for field in fields(cell)}
    return data | {
        "values": dict(cell.values),
        "margin": asdict(cell.margin) if cell.margin else None,
        "notes": [notes.as_data(note) for note in cell.notes],
        "reason": cell.reason,
        "interval_of": INTERVALS[cell.interval_kind] if cell.interval_kind else "",
        "expected_in_words": expected_in_words(cell, column),
    }


def notices(fall: float | None) -> str:
    """Return which fall a number compared with recorded ones would notice, in a word or two."""
    return f"{NOTICES} none" if fall is None else f"{NOTICES} {fall:.1f}"


def table_as_markdown(plan: Plan, checked: TableVerdict) -> str:
    """Return a table as the paper prints it, ours beside it, for a pull request."""
    table = checked.table
    lines = [f"## {table.heading}: {table.title}", "", f"Scale {plan.request.scale}. {table.caption}", ""]
    lines += [on_other_images(images), ""] if (images := other_images(plan, table)) else []
    heads = [
        f"{column.title} ({column.unit}{f', mean of {column.num_runs} runs' if column.num_runs > 1 else ''})"
        for column in table.columns.values()
    ]
    lines += [markdown_row(["Method", *heads]), "|---" * (len(heads) + 1) + "|"]
    for row, cells in zip(table.rows, checked.rows, strict=True):
        shown = [_cell_as_text(cell, table.columns[key], key in row.rerun_by_authors) for key, cell in cells.items()]
        lines.append(markdown_row([row.label, *shown]))
    lines += [f"\nNot drawn yet, no result: {'; '.join(checked.undrawn)}."] if checked.undrawn else []
    lines += [f"\n{SYMBOLS[Verdict.CHANGED]} {Verdict.CHANGED}: {sentence(note)}" for note in checked.changed_curves]
    lines += [f"\nNote: {doubt}." for doubt in checked.doubts]
    if not table.columns:
        return "\n".join(lines) + "\n"
    lines += ["", "Expected, then ours. " + "; ".join(f"{SYMBOLS[v]} {v}" for v in Verdict if checked.score()[v]) + "."]
    if any(row.rerun_by_authors for row in table.rows):
        lines.append("† run by the paper's authors.")
    if _lacks_canary(checked):
        lines.append(CANARY_FOOTNOTE)
    lines += [f"{row.label}, {quote}" for row in table.rows for quote in quotes(table, row)]
    lines += [f"Erratum of the paper: {text}" for text in table.errata]
    return "\n".join(lines) + "\n"


def canary_mark(state: str) -> str:
    """Return the mark of a cell whose canary keeps it from counting as reproduced; "" for any other."""
    return CANARY_MARK if state in notes.DOUBTFUL_CANARIES else ""


def _lacks_canary(checked: TableVerdict) -> bool:
    return any(canary_mark(cell.canary) for _, _, cell in checked.cells())


def _cell_as_text(cell: CellVerdict | None, column: Column, dagger: bool) -> str:
    if cell is None:
        return "–"
    theirs = expected_in_words(cell, column)
    theirs += "†" if dagger and theirs else ""
    if cell.mean is None:
        return f"{theirs} {SYMBOLS[cell.verdict]} {cell.verdict}".strip()
    spread = "" if cell.sd is None else f" ± {cell.sd:.{column.decimals}f}"
    mark = canary_mark(cell.canary)
    ours = f"**{cell.mean:.{column.decimals}f}**{spread} {SYMBOLS[cell.verdict]} {cell.verdict}{mark}"
    return f"{theirs} → {ours}" if theirs else ours


def expected_in_words(cell: CellVerdict, column: Column) -> str:
    """Return what a cell is compared with, as the paper prints it; "" if there is nothing."""
    if cell.share_of and cell.expected is not None:
        return f"{cell.expected:.2f} of {cell.share_of} (printed {cell.printed})"
    if isinstance(cell.printed, str):
        return cell.printed
    expected = cell.expected if cell.expected is not None else cell.printed
    if expected is None:
        return ""
    decimals = column.decimals if expected == round(expected, column.decimals) else column.decimals + 1
    misprint = cell.printed is not None and expected != cell.printed
    return f"{expected:.{decimals}f}" + (f" (printed {cell.printed:.{column.decimals}f})" if misprint else "")


def table_as_text(checked: TableVerdict) -> str:
    """Return a line for each cell that runs of ours make, and how many other cells there are."""
    table = checked.table
    lines = [f"\n{table.heading}: {table.title}"]
    lines += [f"  {SYMBOLS[Verdict.NOT_RUN]} not drawn    {label}: no result yet" for label in checked.undrawn]
    lines += [f"  {SYMBOLS[Verdict.CHANGED]} {Verdict.CHANGED:<12} {sentence(note)}" for note in checked.changed_curves]
    ours = [(row, key, cell) for row, key, cell in checked.cells() if cell.needed]
    names = [f"{row.label}, {table.columns[key].title}" for row, key, _ in ours]
    for name, (_, key, cell) in zip(names, ours, strict=True):
        verdict = f"{cell.verdict}{canary_mark(cell.canary)}"
        line = f"  {SYMBOLS[cell.verdict]} {verdict:<12} {name:<{max(map(len, names))}}"
        if cell.mean is not None:
            line += f"  {cell.mean:7.2f}"
        if cell.expected is not None and cell.difference is not None:
            line += f"  expected {expected_in_words(cell, table.columns[key])} ({cell.difference:+.2f})"
        if cell.interval:
            line += f"  [{cell.interval[0]:.1f}, {cell.interval[1]:.1f}]"
        if cell.interval_kind in UNCHANGED:
            line += f"  {notices(cell.noticeable_fall)}"
        lines.append(line if cell.difference is not None else f"{line}  {cell.reason}")
        if cell.verdict == Verdict.CHANGED and cell.difference is not None:
            lines += [f"      {sentence(note)}" for note in cell.notes if isinstance(note, notes.OtherFirstSteps)]
    if _lacks_canary(checked):
        lines.append(f"  {CANARY_FOOTNOTE}")
    lines += [f"  note: {doubt}" for doubt in checked.doubts]
    others = Counter(str(cell.verdict) for _, _, cell in checked.cells() if not cell.needed)
    if others:
        lines.append("  other cells: " + ", ".join(f"{count} {verdict}" for verdict, count in sorted(others.items())))
    return "\n".join(lines)
