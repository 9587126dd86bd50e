"""The page of the last preflight, and what the report says of it in short."""

from collections import Counter
from pathlib import Path
from typing import Any

from reproduce.errors import UserError
from reproduce.files import write_atomic
from reproduce.harness.plan.model import REPORTS
from reproduce.harness.report.rendering import render_template
from reproduce.harness.spec import preflight_file
from reproduce.harness.spec.golden import number_text

SYMBOLS = {"equal": "✓", "different": "▼", "failed": "✕", "not recorded": "◌"}
"""How a rehearsal may end."""
TONES = {"equal": "good", "different": "bad", "failed": "bad", "not recorded": "unsure"}
MEANINGS = {
    "equal": "every number is within its tolerance of the recorded one",
    "different": "a number is outside its tolerance: this machine, image or checkout computes something else",
    "failed": "the rehearsal ended with an error",
    "not recorded": "nothing is recorded for this recipe, so nothing is known of it",
}
KINDS = {"pretrain": "pretraining", "evaluate": "evaluation", "schedule": "learning rates"}


def in_short(scale: str) -> dict[str, Any] | None:
    """Return what the report says of the last preflight: text, tone, doubts, and whether there is a page.

    Return None for a scale without preflights.
    """
    if scale not in preflight_file.SCALES:
        return None
    without = {"doubts": [], "command": preflight_file.command(scale), "page": False}
    try:
        result = preflight_file.last_preflight(scale)
        if result is None:
            text = "No preflight was run, so nothing is known of how this machine computes the recipes' first steps."
            return {"text": text, "tone": "quiet", **without}
        doubts = list(preflight_file.doubts(result))
    except UserError as error:  # no reason to go without the report
        return {"text": f"{error}", "tone": "unsure", **without}
    text = f"{preflight_file.summary(result)}, {preflight_file.origin(result)}."
    return {"text": text, "tone": "good" if result["equal"] else "bad", "doubts": doubts, "command": "", "page": True}


def write_preflight_page(scale: str) -> Path:
    """Write `reports/<scale>/preflight.html` from the result of the last preflight; return its path."""
    result = preflight_file.last_preflight(scale)
    assert result is not None
    page = REPORTS / scale / "preflight.html"
    write_atomic(page, render(result, has_report=page.with_name("index.html").exists()))
    return page


def render(result: dict[str, Any], *, has_report: bool) -> str:
    """Return the page of a preflight's result, with a link to the report if there is one."""
    rehearsals = result["rehearsals"]
    score = Counter(each["status"] for each in rehearsals)
    return render_template(
        "preflight.html.j2",
        symbols=SYMBOLS,
        tones=TONES,
        meanings=MEANINGS,
        kinds=KINDS,
        result=result,
        summary=preflight_file.summary(result),
        doubts=list(preflight_file.doubts(result)),
        score={status: score[status] for status in SYMBOLS if score[status]},
        unequal=[each for each in rehearsals if not each["equal"]],
        number_text=number_text,
        has_report=has_report,
    )
