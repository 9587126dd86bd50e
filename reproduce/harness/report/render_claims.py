"""The verdicts on claims as data (JSON), as Markdown and as text for a terminal."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reproduce.harness.plan.model import Plan
from reproduce.harness.report.render_tables import result_as_judged
from reproduce.harness.report.rendering import markdown_row
from reproduce.harness.verdict import notes
from reproduce.harness.verdict.claims import ClaimVerdict, PartVerdict
from reproduce.harness.verdict.labels import CLAIM_SYMBOLS, ClaimStatus
from reproduce.harness.verdict.wording import LEVELS, PUBLIC, status_text

CLAIM_KEYS = {
    *("claim", "statement", "section", "status", "tendency", "level", "seeds", "checked", "parts", "runs", "doubts"),
}
"""What a claim in `claims.json` has; claims that an earlier version wrote lack some of these."""


def read_claims(path: Path) -> dict[str, dict[str, Any]]:
    """Return the claims in a `claims.json` by name; none if the file is missing, damaged or an earlier version's."""
    try:
        found = {claim["claim"]: claim for claim in json.loads(path.read_text())["claims"]}
        return {name: claim for name, claim in found.items() if claim.keys() >= CLAIM_KEYS}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def claim_as_data(plan: Plan, verdict: ClaimVerdict) -> dict[str, Any]:
    """Return the verdict on a claim as plain data: what the page and other programs read."""
    return {
        "claim": verdict.claim.claim,
        "statement": verdict.claim.statement,
        "section": verdict.claim.section,
        "status": str(verdict.status),
        "tendency": verdict.tendency,
        "level": verdict.level,
        "seeds": list(plan.request.seeds),
        "checked": datetime.now(UTC).isoformat(timespec="seconds"),
        "parts": [_part_as_data(part) for part in verdict.parts],
        "runs": [result_as_judged(run) for run in verdict.runs],
        "doubts": list(verdict.doubts),
    }


def doubts_in_words(claims: Iterable[tuple[str, Sequence[str]]]) -> list[str]:
    """Return each doubt once, after the names of the claims that it is about; claims are given as name and doubts."""
    names: dict[str, list[str]] = {}
    for name, doubts in claims:
        for doubt in doubts:
            names.setdefault(doubt, []).append(name)
    return [f"claim{'s' * (len(of) > 1)} {', '.join(of)}: {doubt}" for doubt, of in names.items()]


def _part_as_data(part: PartVerdict) -> dict[str, Any]:
    """Return a part's fields with its notes both as data and, under `reason`, in words."""
    data = {field.name: getattr(part, field.name) for field in fields(part)}
    return data | {"notes": [notes.as_data(note) for note in part.notes], "reason": part.reason}


def claims_as_markdown(scale: str, claims: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of claims, each as `claim_as_data` gives it."""
    lines = ["## Claims of the paper", "", f"Scale {scale}. Differences in points with 90% intervals.", ""]
    lines += ["| Claim | Section | Status | Found |", "|---|---|---|---|"]
    for claim in claims:
        found = "<br>".join(_part_as_text(part) for part in claim["parts"])
        symbol = CLAIM_SYMBOLS[ClaimStatus(claim["status"])]
        where = claim["section"] + (", public weights" if claim["level"] == PUBLIC else "")
        status = status_text(claim["status"], claim["tendency"])
        lines.append(markdown_row((claim["statement"], where, f"{symbol} {status}", found)))
    doubted = doubts_in_words((claim["claim"], claim["doubts"]) for claim in claims)
    lines += ["", *(f"- Note: {each}." for each in doubted)] if doubted else []
    return "\n".join(lines) + "\n"


def claims_as_text(verdicts: Sequence[ClaimVerdict]) -> str:
    """Return a line for each claim and one for each of its parts; claims that lack a run only by name."""
    on_public_weights = any(verdict.level == PUBLIC for verdict in verdicts)
    lines = [f"\nClaims of the paper{f', {PUBLIC}: {LEVELS[PUBLIC]}' if on_public_weights else ''}"]
    for verdict in verdicts:
        if verdict.status != ClaimStatus.NOT_RUN:
            status = status_text(verdict.status, verdict.tendency)
            claim = verdict.claim
            lines.append(f"  {CLAIM_SYMBOLS[verdict.status]} {status:<12} {claim.statement} ({claim.section})")
            lines += [f"      {_part_as_text(_part_as_data(part))}" for part in verdict.parts]
    not_run = [verdict for verdict in verdicts if verdict.status == ClaimStatus.NOT_RUN]
    for verdict in not_run:
        if not verdict.incomplete:  # no run can decide it
            lines.append(
                f"  {CLAIM_SYMBOLS[ClaimStatus.NOT_RUN]} not run      {verdict.claim.claim}: {verdict.parts[0].reason}"
            )
    names = ", ".join(verdict.claim.claim for verdict in not_run if verdict.incomplete)
    lines += [f"  not run: {names}"] if names else []
    lines += [f"  note: {each}" for each in doubts_in_words((each.claim.claim, each.doubts) for each in verdicts)]
    return "\n".join(lines)


def _part_as_text(part: Mapping[str, Any]) -> str:
    words = str(part["label"])
    if part["difference"] is not None:
        words += f": {part['difference']:+.2f}"
    if part["interval"] is not None:
        low, high = part["interval"]
        words += f" [{low:.2f}, {high:.2f}]"
    words += f", printed {part['printed']:+.1f}" if part["printed"] is not None else ""
    words += f", g = {part['effect_size']:.1f}" if part["effect_size"] is not None else ""
    return f"{words}. {part['status']}: {part['reason']}"
