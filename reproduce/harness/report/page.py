"""One HTML page for a person: each table as the paper prints it, ours beside it, and every run behind it.

Charts are SVG. The page of the last preflight is beside it.
"""

import os
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reproduce.errors import UserError
from reproduce.files import write_atomic
from reproduce.harness import revision
from reproduce.harness.plan.model import REPORTS
from reproduce.harness.report import benchmarks, figures, render_pictures, render_preflight, runs, summary, svg
from reproduce.harness.report.headline import proofs
from reproduce.harness.report.render_claims import doubts_in_words
from reproduce.harness.report.render_tables import CANARY_FOOTNOTE, canary_mark, on_other_images, result_sha256
from reproduce.harness.report.rendering import render_template
from reproduce.harness.spec import baseline, tables
from reproduce.harness.spec.claims import TARGET
from reproduce.harness.verdict import stats
from reproduce.harness.verdict.labels import AGREEING, CLAIM_SYMBOLS, DISAGREEING, SYMBOLS, ClaimStatus, Verdict
from reproduce.harness.verdict.wording import LEVELS
from reproduce.system import cpu_name

VERDICT_MEANINGS = {
    Verdict.REPRODUCED: "several seeds; the 90% interval of their mean lies inside the margin",
    Verdict.WITHIN: "inside the margin (one seed), or inside the interval where unchanged code falls",
    Verdict.BETTER: "above the margin or interval",
    Verdict.WORSE: "below the margin or interval",
    Verdict.INCONCLUSIVE: "the interval straddles an edge of the margin",
    Verdict.CHANGED: "a run behind it took other first steps than recorded: another recipe, whatever its accuracy",
    Verdict.NO_BASELINE: "measured, but there is nothing to compare with",
    Verdict.NOT_RUN: "no run of ours has made this number",
    Verdict.FAILED: "a run behind it failed or collapsed",
    Verdict.UNAVAILABLE: "the data or weights are not available to anybody",
    Verdict.REPORTED: "a number of another paper, which nothing here can make",
    Verdict.EXPECTED_FAILURE: "the training collapsed, as the paper says it does",
}

STATUS_MEANINGS = {
    ClaimStatus.HOLDS: "several seeds; the whole 90% interval of each part lies on the paper's side",
    ClaimStatus.CONTRADICTED: "the whole interval of a part lies on the other side",
    ClaimStatus.INCONCLUSIVE: "an interval includes both sides, or there is one seed per side, which decides nothing",
    ClaimStatus.CHANGED: "a run behind it took other first steps than recorded, so it decides nothing",
    ClaimStatus.NOT_RUN: "a run that the claim needs has no result",
}

TONES: dict[Verdict | ClaimStatus, str] = {
    **dict.fromkeys(AGREEING, "good"),
    Verdict.BETTER: "better",
    Verdict.WORSE: "bad",
    Verdict.INCONCLUSIVE: "unsure",
    Verdict.CHANGED: "bad",
    Verdict.FAILED: "bad",
    ClaimStatus.HOLDS: "good",
    ClaimStatus.CONTRADICTED: "bad",
    ClaimStatus.CHANGED: "bad",
    ClaimStatus.INCONCLUSIVE: "unsure",
}
"""Colour of a verdict or status; all others are quiet. The symbol says the same without colour."""


def write_page(scale: str) -> Path:
    """Write `reports/<scale>/index.html` from all that was checked at the scale, and `preflight.html` if there was a
    preflight; return the first one's path.

    Raises `UserError` if nothing was checked yet.
    """
    folder = REPORTS / scale
    found = summary.read_verdicts(folder, scale)
    if not found.tables and not found.claims:
        raise UserError(f"Nothing at scale {scale} was checked yet. Run a check first, for example make check-table3.")
    write_atomic(folder / "index.html", render(scale, found, folder))
    in_short = render_preflight.in_short(scale)
    if in_short and in_short["page"]:
        render_preflight.write_preflight_page(scale)
    return folder / "index.html"


def render(scale: str, found: summary.WrittenVerdicts, folder: Path) -> str:
    """Return the page; its links are relative to `folder`."""
    checked, claims = found.tables, found.claims
    all_runs = runs.collect(checked, claims, scale, folder)
    reasons = _prepare(checked)
    # What is compared with recorded numbers is in the headline: a count of `within` does not say what it would notice.
    score = sum((Counter(table["score"]) for table in checked if table["expected"] == "printed"), Counter[str]())
    return render_template(
        "page.html.j2",
        symbols={str(label): symbol for known in (SYMBOLS, CLAIM_SYMBOLS) for label, symbol in known.items()},
        tones={str(label): TONES.get(label, "quiet") for label in (*ClaimStatus, *Verdict)},
        claim_strip=svg.claim_strip,
        reach=f"{svg.REACH:g}",
        scale=scale,
        tables=checked,
        images=", ".join(sorted({table["images"] for table in checked})),
        cells=[cell for table in checked for cell in _cells(table)],
        claims=claims,
        checkpoints=_with_strips(found.checkpoints),
        proved=proofs(checked, found.checkpoints),
        canary_footnote=CANARY_FOOTNOTE,
        power=f"{stats.POWER:.0%}",
        figures=list(figures.draw(checked, all_runs)),
        pictured=render_pictures.collect(all_runs, folder),
        runs={run_id: run for run_id, run in all_runs.items() if run["result"] or run["failure"]},
        num_planned=len(all_runs),
        cost=_cost(all_runs),
        reasons=reasons,
        benchmarks=benchmarks.latest(),
        score=_ordered(score),
        claim_score=_ordered(Counter(claim["status"] for claim in claims)),
        verdict_meanings={str(verdict): VERDICT_MEANINGS[verdict] for verdict in Verdict},
        status_meanings={str(status): STATUS_MEANINGS[status] for status in ClaimStatus},
        levels={level: LEVELS[level] for level in LEVELS if any(table["level"] == level for table in checked)},
        warnings=_warnings(found, all_runs),
        preflight=render_preflight.in_short(scale),
        recorded=next((table["recorded"] for table in checked if table["recorded"]), None),
        written=datetime.now(UTC),
        commit=revision.commit()[:12],
        dirty=revision.dirty(),
        machine=f"{cpu_name()}, {os.cpu_count()} cores",
    )


def _prepare(checked: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Add to every cell what the templates need; return why cells were not run, by verdict and reason.

    A reason is `{"id": ..., "cells": [...]}`.
    """
    reasons: dict[str, dict[str, dict[str, Any]]] = {}
    reach_of_page = svg.reach_in_points(cell for table in checked for cell in _cells(table))
    for table in checked:
        table["images"] = table.get("images", "")  # an earlier version did not write it
        table["on_other_images"] = on_other_images(table["images"]) if table["images"] else ""
        table["reach"] = reach = svg.reach_in_points(_cells(table))
        for row in table["rows"]:
            for key, cell in row["cells"].items():
                if cell is None:
                    continue
                column = table["columns"][key]
                cell["id"] = f"{table['table']}-{_slug(row['label'])}-{key}"
                cell["words"] = f"{row['label']}, {column['title']}"
                cell["table"], cell["column"] = table, column
                cell["strip"] = svg.cell_strip(cell, reach)
                cell["strip_of_page"] = svg.cell_strip(cell, reach_of_page)
                cell["order"] = _first(cell["mean"], cell["expected"], tables.parse_printed(cell["printed"]))
                judged = (*AGREEING, *DISAGREEING, Verdict.FAILED)
                cell["shown"] = cell["mean"] is not None or cell["verdict"] in judged
                cell["why"] = f"why-{cell['id']}"
                cell["mark"] = canary_mark(cell["canary"])
                if not cell["shown"]:
                    same = reasons.setdefault(cell["verdict"], {})
                    number = sum(map(len, reasons.values()))
                    entry = same.setdefault(cell["reason"], {"id": f"why-{number}", "cells": []})
                    entry["cells"].append(cell)
                    cell["why"] = entry["id"]
    return reasons


def _with_strips(checkpoints: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to every checkpoint its strip, all on one scale."""
    cells = [{"margin": None, **each} for each in checkpoints]
    reach = svg.reach_in_points(cells)
    return [cell | {"strip": svg.cell_strip(cell, reach), "id": f"checkpoint-{_slug(cell['name'])}"} for cell in cells]


def _cells(table: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for row in table["rows"]:
        yield from (cell for cell in row["cells"].values() if cell)


def _cost(all_runs: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return what the finished runs took together."""
    done = [run["result"] for run in all_runs.values() if run["result"]]
    return {
        "num_runs": len(done),
        "wall_seconds": sum(result.get("wall_seconds", 0.0) for result in done),
        "device_hours": sum(result.get("device_hours", 0.0) for result in done),
        "peak_memory_gb": max((result.get("peak_memory_gb") or 0.0 for result in done), default=0.0),
    }


def _ordered(counts: Counter[str]) -> dict[str, int]:
    return {str(label): counts[label] for label in dict.fromkeys((*Verdict, *ClaimStatus)) if counts[label]}


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _warnings(found: summary.WrittenVerdicts, all_runs: dict[str, dict[str, Any]]) -> list[str]:
    """Return what a reader should know before believing the page."""
    done = [run["result"] for run in all_runs.values() if run["result"]]
    warnings = [f"{sentence}." for sentence in stale_verdicts(found)]
    warnings += [f"{table['heading']}: {doubt}." for table in found.tables for doubt in table["doubts"]]
    doubted = doubts_in_words((claim["claim"], claim["doubts"]) for claim in found.claims)
    warnings += [f"{each[0].upper()}{each[1:]}." for each in doubted]
    if outdated := [run["label"] for run in all_runs.values() if run.get("outdated")]:
        warnings.append(
            f"{len(outdated)} of {len(done)} results are not judged because their checkpoint has since been made"
            f" again or removed ({outdated[0]}{', ...' if len(outdated) > 1 else ''}). make reproduce-... measures them"
            " again."
        )
    if len({tuple(table["seeds"]) for table in found.tables}) > 1:
        warnings.append("The tables were checked with different seeds.")
    return warnings


def stale_verdicts(found: summary.WrittenVerdicts) -> Iterator[str]:
    """Yield a sentence for each table and claim whose verdict is of other results, or of other expected numbers."""
    for table in found.tables:
        same_table = table["sha256"] == tables.sha256(table["table"], table["scale"])
        same_recording = table["recorded"] in ({}, baseline.load(table["scale"]).header)
        if not (same_table and same_recording):
            what = "recorded numbers" if same_table else "table"
            yield (
                f"{table['heading']} was checked before its {what} changed, and shows the verdicts by the earlier "
                f"ones: make check-{table['table']} judges by those of now"
            )
    judged = [(table["heading"], table["table"], table["runs"]) for table in found.tables]
    judged += [(f"Claim {claim['claim']}", TARGET, claim["runs"]) for claim in found.claims]
    for name, target, runs_then in judged:
        changed = [
            run
            for run in runs_then
            if "result_sha256" in run and run["result_sha256"] != result_sha256(Path(run["folder"]) / "result.json")
        ]
        if changed:
            yield (
                f"{name} was checked before {len(changed)} of its {len(runs_then)} results changed "
                f"({changed[0]['label']}{', ...' if len(changed) > 1 else ''}), and shows the verdicts on the earlier "
                f"ones: make check-{target} judges those of now"
            )


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text.lower()).strip("-")
