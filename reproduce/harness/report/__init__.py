"""One page for a person: each table as the paper prints it, ours beside it, and every run behind it.

The page is one file that needs no network: charts are SVG, style and script are inline, and its content security
policy lets nothing else act or load.
"""

import base64
import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reproduce.errors import UserError
from reproduce.files import write_atomic
from reproduce.harness import revision
from reproduce.harness.plan.durations import format_duration
from reproduce.harness.plan.model import REPORTS
from reproduce.harness.report import claims as show_claims
from reproduce.harness.report import drawing, figures, runs, speed, summary
from reproduce.harness.spec import tables
from reproduce.harness.verdict.check import DIFFERENT, SAME, SYMBOLS
from reproduce.harness.verdict.claims import Standing
from reproduce.harness.verdict.stats import Verdict
from reproduce.system import cpu_name

FOLDER = Path(__file__).parent

MEANINGS = {
    Verdict.REPRODUCED: "several seeds; the 90% interval of their mean lies inside the margin",
    Verdict.WITHIN: "inside the margin (one seed), or where new seeds of unchanged code fall",
    Verdict.BETTER: "above that",
    Verdict.WORSE: "below that",
    Verdict.INCONCLUSIVE: "the interval straddles an edge of the margin",
    Verdict.NO_BASELINE: "measured, with nothing to compare with",
    Verdict.NOT_RUN: "no run of ours has made this number",
    Verdict.FAILED: "a run behind it failed or collapsed",
    Verdict.UNAVAILABLE: "data or weights that nobody can get",
    Verdict.REPORTED: "another paper's number",
    Verdict.EXPECTED_FAILURE: "the training collapsed, as the paper says that it does",
}

STANDINGS = {
    Standing.HOLDS: "several seeds: each part's whole 90% interval lies on the side that the paper concludes",
    Standing.CONTRADICTED: "the whole interval of a part lies on the other side",
    Standing.INCONCLUSIVE: "an interval reaches to both sides, or there is one seed a side, which only points",
    Standing.NOT_RUN: "a run that it needs has no result",
}

LEVELS = {
    "L0": "the authors' public checkpoint through our evaluation",
    "L1": "our pretraining through our evaluation",
}

TONES: dict[Verdict | Standing, str] = {
    **dict.fromkeys(SAME, "good"),
    Verdict.BETTER: "better",
    Verdict.WORSE: "bad",
    Verdict.INCONCLUSIVE: "unsure",
    Verdict.FAILED: "bad",
    Standing.HOLDS: "good",
    Standing.CONTRADICTED: "bad",
    Standing.INCONCLUSIVE: "unsure",
}
"""Colour of a verdict or standing; all others are quiet. The symbol says the same without colour."""


def write(scale: str) -> Path:
    """Write `reports/<scale>/index.html` from all that was checked at the scale; return its path."""
    folder = REPORTS / scale
    checked, claims = summary.checked_at(folder, scale)
    if not checked and not claims:
        raise UserError(f"nothing at scale {scale} was checked yet: run the check first, e.g. make check-table3")
    write_atomic(folder / "index.html", render(scale, checked, claims, folder))
    return folder / "index.html"


def render(scale: str, checked: list[dict[str, Any]], claims: list[dict[str, Any]], folder: Path) -> str:
    """The page, with links relative to `folder`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    script = (FOLDER / "page.js").read_text()
    environment.filters |= {"duration": format_duration, "signed": _signed, "hours": _hours}
    environment.globals |= {
        "symbols": {str(said): symbol for known in (SYMBOLS, show_claims.SYMBOLS) for said, symbol in known.items()},
        "tones": {str(said): TONES.get(said, "quiet") for said in (*Standing, *Verdict)},
        "claim_strip": drawing.claim_strip,
        "reach": f"{drawing.REACH:g}",
    }
    behind = runs.collect(checked, claims, scale, folder)
    reasons = _prepare(checked)
    claims = [{"level": "L1", "side": ""} | claim for claim in claims]
    score = sum((Counter(table["score"]) for table in checked), Counter[str]())
    return environment.get_template("page.html.j2").render(
        scale=scale,
        tables=checked,
        cells=[cell for table in checked for cell in _cells(table)],
        claims=claims,
        figures=list(figures.draw(checked, behind)),
        runs={run_id: run for run_id, run in behind.items() if run["result"] or run["failure"]},
        num_planned=len(behind),
        cost=_cost(behind),
        reasons=reasons,
        speed=speed.latest(),
        score=_ordered(score),
        standings=_ordered(Counter(claim["standing"] for claim in claims)),
        disagreeing=sum(score[verdict] for verdict in DIFFERENT),
        meanings={str(verdict): MEANINGS[verdict] for verdict in Verdict},
        claim_meanings={str(standing): STANDINGS[standing] for standing in Standing},
        levels={level: LEVELS[level] for level in LEVELS if any(table["level"] == level for table in checked)},
        notes=_notes(checked, behind),
        recorded=next((table["recorded"] for table in checked if table["recorded"]), None),
        written=datetime.now(UTC),
        commit=revision.commit()[:12],
        dirty=revision.dirty(),
        machine=f"{cpu_name()}, {os.cpu_count()} cores",
        style=(FOLDER / "style.css").read_text(),
        script=script,
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _prepare(checked: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Give every cell its id, its words and its strip; return why cells were not run, by verdict and reason.

    A reason is `{"id": ..., "cells": [...]}`.
    """
    reasons: dict[str, dict[str, dict[str, Any]]] = {}
    for table in checked:
        for row in table["rows"]:
            for key, cell in row["cells"].items():
                if cell is None:
                    continue
                column = table["columns"][key]
                cell["id"] = f"{table['table']}-{_slug(row['label'])}-{key}"
                cell["words"] = f"{row['label']}, {column['title']}"
                cell["table"], cell["column"] = table, column
                cell["strip"] = drawing.strip(cell)
                cell["order"] = _first(cell["mean"], cell["expected"], tables.parse_printed(cell["printed"]))
                cell["shown"] = cell["mean"] is not None or cell["verdict"] in (*SAME, *DIFFERENT, Verdict.FAILED)
                cell["why"] = f"why-{cell['id']}"
                if not cell["shown"]:
                    same = reasons.setdefault(cell["verdict"], {})
                    number = sum(map(len, reasons.values()))
                    entry = same.setdefault(cell["reason"], {"id": f"why-{number}", "cells": []})
                    entry["cells"].append(cell)
                    cell["why"] = entry["id"]
    return reasons


def _cells(table: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for row in table["rows"]:
        yield from (cell for cell in row["cells"].values() if cell)


def _cost(behind: dict[str, dict[str, Any]]) -> dict[str, float]:
    """What the finished runs took together."""
    done = [run["result"] for run in behind.values() if run["result"]]
    return {
        "num_runs": len(done),
        "wall_seconds": sum(result.get("wall_seconds", 0.0) for result in done),
        "device_hours": sum(result.get("device_hours", 0.0) for result in done),
        "peak_memory_gb": max((result.get("peak_memory_gb") or 0.0 for result in done), default=0.0),
    }


def _ordered(counts: Counter[str]) -> dict[str, int]:
    return {str(said): counts[said] for said in dict.fromkeys((*Verdict, *Standing)) if counts[said]}


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _notes(checked: list[dict[str, Any]], runs: dict[str, dict[str, Any]]) -> list[str]:
    """What a reader should know before believing the page."""
    done = [run["result"] for run in runs.values() if run["result"]]
    notes = []
    skipped = sum(int(result.get("counts", {}).get("num_skipped_images", 0)) for result in done)
    if skipped:
        notes.append(f"{skipped} pictures could not be read and were skipped, as asked; each run's row says how many.")
    here = revision.commit()
    commits = Counter(str(result.get("provenance", {}).get("git_commit")) for result in done)
    others = {
        commit: count
        for commit, count in commits.items()
        if revision.run_code_fingerprint(commit) != revision.run_code_fingerprint(here)
    }
    if here and others:
        theirs = ", ".join(sorted(commit[:12] for commit in others))
        notes.append(
            f"{sum(others.values())} of {len(done)} results were made by other code ({theirs}) than the checkout's"
            f" ({here[:12]}). Delete their folders in results to make them again."
        )
    if outdated := [run["label"] for run in runs.values() if run.get("outdated")]:
        notes.append(
            f"{len(outdated)} of {len(done)} results are not judged: their checkpoint was made again or removed since"
            f" ({outdated[0]}{', ...' if len(outdated) > 1 else ''}). make reproduce-... measures again."
        )
    dirty = sum(bool(result.get("provenance", {}).get("git_dirty")) for result in done)
    if dirty:
        notes.append(f"{dirty} of {len(done)} results were made by code with changes that are in no commit.")
    if len({tuple(table["seeds"]) for table in checked}) > 1:
        notes.append("The tables were checked with different seeds.")
    return notes


def _hours(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _signed(value: float, decimals: int) -> str:
    text = f"{value:+.{decimals}f}".replace("-", "−")
    return text if text.strip("+−0.") else text[1:]


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text.lower()).strip("-")
