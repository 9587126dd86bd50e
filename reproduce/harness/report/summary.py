"""All verdicts at a scale in one short Markdown file, for a pull request."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reproduce.errors import UserError
from reproduce.files import read_json, write_atomic
from reproduce.harness.report.render_claims import CLAIM_KEYS
from reproduce.harness.report.render_tables import CANARY_FOOTNOTE
from reproduce.harness.spec import claims, tables
from reproduce.harness.verdict.labels import CLAIM_SYMBOLS, SYMBOLS, ClaimStatus, Verdict
from reproduce.harness.verdict.wording import PUBLIC, status_text

TABLE_KEYS = {"table", "heading", "title", "level", "score", "seeds", "columns", "runs", "rows", "undrawn", "recorded"}
"""Keys of a table's JSON that its readers need."""


def write(folder: Path, scale: str) -> Path:
    """Write `summary.md` from the tables and claims that a folder of reports holds; return its path."""
    write_atomic(folder / "summary.md", as_markdown(scale, *read_verdicts(folder, scale)))
    return folder / "summary.md"


def read_verdicts(folder: Path, scale: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Read the tables and the claims that were checked at a scale.

    Raises `UserError` for a file that this version's checks did not write.
    """
    files = [path for name in tables.names(scale) if (path := folder / f"{name}.json").exists()]
    return [_read_table(path) for path in files], _read_claims(folder / f"{claims.TARGET}.json")


def _read_table(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict) or not found.keys() >= TABLE_KEYS:
        raise _unreadable(path)
    return found


def _read_claims(path: Path) -> list[dict[str, Any]]:
    found = read_json(path) if path.exists() else {"claims": []}
    known = found.get("claims") if isinstance(found, dict) else None
    if not isinstance(known, list) or not all(
        isinstance(claim, dict) and claim.keys() >= CLAIM_KEYS for claim in known
    ):
        raise _unreadable(path)
    return known


def _unreadable(path: Path) -> UserError:
    return UserError(
        f"{path} is damaged, or another version's. Delete it, and write it again with make check-{path.stem} (with "
        "SCALE= and SEEDS= as before)."
    )


def as_markdown(scale: str, checked: Sequence[Mapping[str, Any]], known: Sequence[Mapping[str, Any]]) -> str:
    """Return the score of every table, the cells that runs of ours made, and the claims that were run."""
    code = {f"`{table['commit'][:12] or 'none'}`{' with changes' if table['dirty'] else ''}" for table in checked}
    lines = [f"# Verdicts, scale {scale}", "", f"Checked by commit {', '.join(sorted(code)) or 'none'}.", ""]
    lines += ["| Table | Cells |", "|---|---|"]
    for table in checked:
        score = ", ".join(
            f"{SYMBOLS[verdict]} {table['score'][verdict]} {verdict}"
            for verdict in Verdict
            if verdict in table["score"]
        )
        lines.append(f"| [{table['heading']}]({table['table']}.md): {table['title']} | {score or '–'} |")
    made = [line for table in checked for line in _made_cells(table)]
    if made:
        lines += ["", "| Cell | Expected | Ours | Seeds | Verdict |", "|---|--:|--:|--:|---|", *made]
    if any(cell["canary"] == "missing" for table in checked for cell in _cells(table)):
        lines += ["", CANARY_FOOTNOTE]
    run = [claim for claim in known if claim["status"] != ClaimStatus.NOT_RUN]
    if run:
        lines += ["", "| Claim | Status |", "|---|---|"]
        for claim in run:
            level = f" ({PUBLIC})" if claim["level"] == PUBLIC else ""
            symbol = CLAIM_SYMBOLS[ClaimStatus(claim["status"])]
            status = status_text(claim["status"], claim["tendency"])
            lines.append(f"| {claim['statement']}{level} | {symbol} {status} |")
    if len(run) < len(known):
        lines += ["", f"{len(known) - len(run)} of {len(known)} claims were not run."]
    return "\n".join(lines) + "\n"


def _cells(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [cell for row in table["rows"] for cell in row["cells"].values() if cell]


def _made_cells(table: Mapping[str, Any]) -> list[str]:
    """Return a line for each cell that has a number or whose run failed."""
    lines = []
    for row in table["rows"]:
        for key, cell in row["cells"].items():
            if not cell or not cell["needed"] or cell["verdict"] == Verdict.NOT_RUN:
                continue
            column = table["columns"][key]
            ours = "–" if cell["mean"] is None else f"{cell['mean']:.{column['decimals']}f}"
            ours += "" if cell["sd"] is None else f" ± {cell['sd']:.{column['decimals']}f}"
            mark = "°" if cell["canary"] == "missing" else ""
            theirs = cell["expected_in_words"] or "–"
            lines.append(
                f"| {table['heading']}: {row['label']}, {column['title']} | {theirs} | {ours} |"
                f" {len(cell['values'])} | {SYMBOLS[Verdict(cell['verdict'])]} {cell['verdict']}{mark} |"
            )
    return lines
