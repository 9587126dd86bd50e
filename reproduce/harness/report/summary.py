"""All verdicts at a scale in one short Markdown file, for a pull request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproduce.errors import UserError
from reproduce.files import read_json, write_atomic
from reproduce.harness.report import render_checkpoints
from reproduce.harness.report.headline import headline
from reproduce.harness.report.render_checkpoints import CHECKPOINT_KEYS, checkpoints_as_markdown, fall_in_words
from reproduce.harness.report.render_claims import CLAIM_KEYS, doubts_in_words
from reproduce.harness.report.render_tables import CANARY_FOOTNOTE, canary_mark
from reproduce.harness.report.rendering import markdown_row
from reproduce.harness.spec import claims, tables
from reproduce.harness.verdict.labels import CLAIM_SYMBOLS, SYMBOLS, ClaimStatus, Verdict
from reproduce.harness.verdict.wording import PUBLIC, status_text

TABLE_KEYS = {
    *("table", "heading", "title", "level", "score", "seeds", "expected", "columns", "runs", "rows", "undrawn"),
    *("recorded", "doubts"),
}
"""Keys of a table's JSON that its readers need."""


@dataclass(frozen=True)
class WrittenVerdicts:
    """The verdicts that a folder of reports holds, each as data."""

    tables: list[dict[str, Any]]
    claims: list[dict[str, Any]]
    checkpoints: list[dict[str, Any]]
    """Those of the last check with recorded numbers."""


def write(folder: Path, scale: str, found: WrittenVerdicts) -> None:
    """Write `summary.md` from the tables and claims that a folder of reports holds."""
    write_atomic(folder / "summary.md", as_markdown(scale, found.tables, found.claims, found.checkpoints))


def read_verdicts(folder: Path, scale: str) -> WrittenVerdicts:
    """Read the tables, claims and checkpoints that were checked at a scale.

    Raises `UserError` for a file that this version's checks did not write.
    """
    files = [path for name in tables.names(scale) if (path := folder / f"{name}.json").exists()]
    return WrittenVerdicts(
        [_read_table(path) for path in files],
        _read_list(folder / f"{claims.TARGET}.json", "claims", CLAIM_KEYS),
        _read_list(folder / render_checkpoints.FILE, "checkpoints", CHECKPOINT_KEYS),
    )


def _read_table(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict) or not found.keys() >= TABLE_KEYS:
        raise _unreadable(path)
    return found


def _read_list(path: Path, key: str, keys_of_each: set[str]) -> list[dict[str, Any]]:
    found = read_json(path) if path.exists() else {key: []}
    known = found.get(key) if isinstance(found, dict) else None
    if not isinstance(known, list) or not all(isinstance(each, dict) and each.keys() >= keys_of_each for each in known):
        raise _unreadable(path)
    return known


def _unreadable(path: Path) -> UserError:
    name = "TABLE" if path.name == render_checkpoints.FILE else path.stem
    return UserError(
        f"{path} is damaged, or another version's. Delete it, and write it again with make check-{name} (with "
        "SCALE= and SEEDS= as before)."
    )


def as_markdown(
    scale: str,
    checked: Sequence[Mapping[str, Any]],
    known: Sequence[Mapping[str, Any]],
    checkpoints: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return what was proved, every table's score, the cells that runs of ours made, and the claims that were run."""
    code = {f"`{table['commit'][:12] or 'none'}`{' with changes' if table['dirty'] else ''}" for table in checked}
    lines = [f"# Verdicts, scale {scale}", "", f"Checked by commit {', '.join(sorted(code)) or 'none'}.", ""]
    if proved := headline(checked, checkpoints):
        lines += [f"**{proved[0].upper()}{proved[1:]}.**", ""]
    lines += ["| Table | Cells |", "|---|---|"]
    for table in checked:
        score = ", ".join(
            f"{SYMBOLS[verdict]} {table['score'][verdict]} {verdict}"
            for verdict in Verdict
            if verdict in table["score"]
        )
        lines.append(markdown_row((f"[{table['heading']}]({table['table']}.md): {table['title']}", score or "–")))
    made = [line for table in checked for line in _made_cells(table, bool(proved))]
    if made:
        head = ["Cell", "Expected", "Ours", "Seeds", *(["Would notice a fall of"] if proved else []), "Verdict"]
        lines += ["", f"| {' | '.join(head)} |", f"|---|{'--:|' * (len(head) - 2)}---|", *made]
    lines += checkpoints_as_markdown(checkpoints)
    if doubted := [(table["heading"], doubt) for table in checked for doubt in table["doubts"]]:
        lines += ["", *(f"- {heading}: {doubt}." for heading, doubt in doubted)]
    if any(canary_mark(cell["canary"]) for table in checked for cell in _cells(table)):
        lines += ["", CANARY_FOOTNOTE]
    run = [claim for claim in known if claim["status"] != ClaimStatus.NOT_RUN]
    if run:
        lines += ["", "| Claim | Status |", "|---|---|"]
        for claim in run:
            level = f" ({PUBLIC})" if claim["level"] == PUBLIC else ""
            symbol = CLAIM_SYMBOLS[ClaimStatus(claim["status"])]
            status = status_text(claim["status"], claim["tendency"])
            lines.append(markdown_row((f"{claim['statement']}{level}", f"{symbol} {status}")))
    if doubted_claims := doubts_in_words((claim["claim"], claim["doubts"]) for claim in known):
        lines += ["", *(f"- {each[0].upper()}{each[1:]}." for each in doubted_claims)]
    if len(run) < len(known):
        lines += ["", f"{len(known) - len(run)} of {len(known)} claims were not run."]
    return "\n".join(lines) + "\n"


def _cells(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [cell for row in table["rows"] for cell in row["cells"].values() if cell]


def _made_cells(table: Mapping[str, Any], with_falls: bool) -> list[str]:
    """Return a line for each cell that has a number or whose run failed; with what it would notice, if requested."""
    lines = []
    for row in table["rows"]:
        for key, cell in row["cells"].items():
            if not cell or not cell["needed"] or cell["verdict"] == Verdict.NOT_RUN:
                continue
            column = table["columns"][key]
            ours = "–" if cell["mean"] is None else f"{cell['mean']:.{column['decimals']}f}"
            ours += "" if cell["sd"] is None else f" ± {cell['sd']:.{column['decimals']}f}"
            mark = canary_mark(cell["canary"])
            theirs = cell["expected_in_words"] or "–"
            compared = cell["interval"] and table["expected"] == "recorded"
            fall = fall_in_words(cell["noticeable_fall"]) if compared else "–"
            what = f"{table['heading']}: {row['label']}, {column['title']}"
            verdict = f"{SYMBOLS[Verdict(cell['verdict'])]} {cell['verdict']}{mark}"
            shown = (what, theirs, ours, str(len(cell["values"])), *((fall,) if with_falls else ()), verdict)
            lines.append(markdown_row(shown))
    return lines
