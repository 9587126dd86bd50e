"""The claims as text, as files of a report, and as test cases."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from reproduce.files import write_atomic, write_json
from reproduce.harness.plan.model import Plan
from reproduce.harness.spec import claims
from reproduce.harness.verdict.claims import Answer, Standing

SYMBOLS = {
    Standing.HOLDS: "●",
    Standing.CONTRADICTED: "▼",
    Standing.INCONCLUSIVE: "◆",
    Standing.NOT_RUN: "○",
}


def said(standing: str, side: str) -> str:
    """A standing in words, and, where one seed a side leaves a claim undecided, which way it points."""
    return f"{standing}, points the {side} way" if side else str(standing)


def as_text(answers: Sequence[Answer]) -> str:
    """A line a claim and one for each of its parts; those that lack a run by name only."""
    told = "\nClaims of the paper"
    of_public = any(answer.level == "L0" for answer in answers)
    lines = [f"{told}, level L0: the authors' public checkpoints through our evaluations" if of_public else told]
    for answer in answers:
        if answer.standing != Standing.NOT_RUN:
            lines.append(
                f"  {SYMBOLS[answer.standing]} {said(answer.standing, answer.side):<12} {answer.claim.statement}"
                f" ({answer.claim.section})"
            )
            lines += [f"      {_in_words(asdict(finding))}" for finding in answer.findings]
    others = [answer for answer in answers if answer.standing == Standing.NOT_RUN]
    impossible = {answer.claim.claim: answer.findings[0].reason for answer in others if not answer.lacking}
    lines += [f"  {SYMBOLS[Standing.NOT_RUN]} not run      {claim}: {reason}" for claim, reason in impossible.items()]
    names = ", ".join(answer.claim.claim for answer in others if answer.lacking)
    return "\n".join([*lines, *([f"  not run: {names}"] if names else [])])


def write(plan: Plan, answers: Sequence[Answer]) -> list[Answer]:
    """Write `claims.json` and `claims.md`; return the answers that are new.

    Claims that were judged earlier, and not now, stay as they were.
    """
    path = plan.reports / "claims.json"
    before = _read(path)
    now = {answer.claim.claim: _as_data(plan, answer) for answer in answers}
    known = before | now
    kept = [known[claim.claim] for claim in claims.load() if claim.claim in known]
    write_json(path, {"scale": plan.request.scale, "claims": kept})
    write_atomic(path.with_suffix(".md"), _as_markdown(plan.request.scale, kept))
    return [answer for answer in answers if _told(now[answer.claim.claim]) != _told(before.get(answer.claim.claim))]


def track(plan: Plan, answers: Sequence[Answer]) -> None:
    """Log claims to W&B, a row for each of their parts."""
    from reproduce.engine.runs import tracking

    columns = ["claim", "part", "standing", "printed", "difference", "low", "high", "effect size", "reason", "runs"]
    rows = [
        [
            *(answer.claim.claim, finding.what, str(finding.standing), finding.printed, finding.difference),
            *(finding.interval or (None, None)),
            *(finding.effect_size, finding.reason, " ".join(finding.run_ids)),
        ]
        for answer in answers
        for finding in answer.findings
    ]
    tracking.log_table(claims.TARGET, plan.request.scale, plan.reports, columns, rows)


def _told(claim: dict[str, Any] | None) -> str:
    """What a claim's data says, whenever it was checked."""
    return json.dumps({**(claim or {}), "checked": ""})


def _read(path: Path) -> dict[str, Any]:
    try:
        return {claim["claim"]: claim for claim in json.loads(path.read_text())["claims"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _as_data(plan: Plan, answer: Answer) -> dict[str, Any]:
    return {
        "claim": answer.claim.claim,
        "statement": answer.claim.statement,
        "section": answer.claim.section,
        "standing": str(answer.standing),
        "side": answer.side,
        "level": answer.level,
        "seeds": list(plan.request.seeds),
        "checked": datetime.now(UTC).isoformat(timespec="seconds"),
        "findings": [asdict(finding) for finding in answer.findings],
    }


def _as_markdown(scale: str, kept: list[dict[str, Any]]) -> str:
    lines = ["## Claims of the paper", "", f"Scale {scale}. Differences in points with 90% intervals.", ""]
    lines += ["| Claim | Section | | Found |", "|---|---|---|---|"]
    for claim in kept:
        found = "<br>".join(_in_words(finding) for finding in claim["findings"])
        symbol = SYMBOLS[Standing(claim["standing"])]
        where = claim["section"] + (", level L0" if claim.get("level") == "L0" else "")
        lines.append(
            f"| {claim['statement']} | {where} | {symbol} {said(claim['standing'], claim.get('side', ''))} | {found} |"
        )
    return "\n".join(lines) + "\n"


def _in_words(finding: dict[str, Any]) -> str:
    words = str(finding["what"])
    if finding["difference"] is not None:
        words += f": {finding['difference']:+.2f}"
    if finding["interval"] is not None:
        low, high = finding["interval"]
        words += f" [{low:.2f}, {high:.2f}]"
    words += f", printed {finding['printed']:+.1f}" if finding["printed"] is not None else ""
    words += f", g = {finding['effect_size']:.1f}" if finding["effect_size"] is not None else ""
    return f"{words}. {finding['standing']}: {finding['reason']}"


def add_to_junit(root: ElementTree.Element, answers: Sequence[Answer], asked: bool) -> None:
    """A test case a claim: contradicted fails; what lacks a run is an error where the claims were asked for."""
    suite = ElementTree.SubElement(root, "testsuite", name=claims.TARGET)
    for answer in answers:
        case = ElementTree.SubElement(suite, "testcase", classname=claims.TARGET, name=answer.claim.claim)
        if answer.standing == Standing.HOLDS:
            continue
        kind = "error" if asked and answer.lacking else "skipped"
        kind = "failure" if answer.standing == Standing.CONTRADICTED else kind
        reasons = " ".join(f.reason for f in answer.findings if f.standing == answer.standing)
        ElementTree.SubElement(case, kind, message=f"{answer.standing}: {reasons}")
