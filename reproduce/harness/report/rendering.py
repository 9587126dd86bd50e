"""How every page is rendered from its template: one file that needs no network, with style and script inline.

A page's content security policy forbids everything else, and all text is escaped.
"""

import base64
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from reproduce.harness.plan.durations import format_duration

TEMPLATES = Path(__file__).parent / "templates"
NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML may have: most control characters, and halves of surrogate pairs."""


def render_template(name: str, **content: Any) -> str:
    """Return the page of a template."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"duration": format_duration, "signed": _signed, "hours": _hours}
    script = (TEMPLATES / "page.js").read_text()
    return environment.get_template(name).render(
        style=(TEMPLATES / "style.css").read_text(),
        script=script,
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **content,
    )


def xml_text(text: str) -> str:
    """Return a text that XML may have; a run's error may quote the bytes of a broken file."""
    return NOT_IN_XML.sub("\ufffd", text)


def markdown_row(cells: Iterable[str]) -> str:
    """Return a line of a Markdown table; a pipe or a line break in a cell makes no other cell or row."""
    return "| " + " | ".join(" ".join(xml_text(cell).split()).replace("|", "\\|") for cell in cells) + " |"


def _hours(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _signed(value: float, decimals: int) -> str:
    text = f"{value:+.{decimals}f}".replace("-", "−")
    return text if text.strip("+−0.") else text[1:]
