"""All that was checked at a scale, in one short Markdown file: for a pull request."""

from pathlib import Path
from typing import Any

from reproduce.errors import UserError
from reproduce.files import read_json, write_atomic
from reproduce.harness.report import claims as show_claims
from reproduce.harness.spec import claims, tables
from reproduce.harness.verdict import canary
from reproduce.harness.verdict.claims import Standing
from reproduce.harness.verdict.stats import Verdict

OF_TABLES = {"table", "heading", "title", "level", "score", "seeds", "columns", "runs", "rows", "undrawn", "recorded"}
OF_CLAIMS = {"claims"}
"""Keys that a check writes, and its readers need."""


def write(folder: Path, scale: str, symbols: dict[Verdict, str]) -> Path:
    """Write `summary.md` from the tables and claims that a folder of reports holds; return its path."""
    write_atomic(folder / "summary.md", as_markdown(scale, *checked_at(folder, scale), symbols))
    return folder / "summary.md"


def checked_at(folder: Path, scale: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The tables and the claims that were checked at a scale, as the files in `folder` have them."""
    files = [path for name in tables.names(scale) if (path := folder / f"{name}.json").exists()]
    said = folder / f"{claims.TARGET}.json"
    return [_read(path, OF_TABLES) for path in files], _read(said, OF_CLAIMS)["claims"] if said.exists() else []


def _read(path: Path, keys: set[str]) -> dict[str, Any]:
    """What a check wrote. Raises `UserError` for a file without what this version's checks write."""
    found = read_json(path)
    if not isinstance(found, dict) or not found.keys() >= keys:
        raise UserError(
            f"{path} is damaged, or another version's: delete it, and make it anew by make check-{path.stem} (with "
            "SCALE= and SEEDS= as before)"
        )
    return found


def as_markdown(
    scale: str, checked: list[dict[str, Any]], known: list[dict[str, Any]], symbols: dict[Verdict, str]
) -> str:
    """The score of every table, the cells that runs of ours made, the claims that were run."""
    code = {f"`{table['commit'][:12] or 'none'}`{' with changes' if table['dirty'] else ''}" for table in checked}
    lines = [f"# Verdicts, scale {scale}", "", f"Checked by commit {', '.join(sorted(code)) or 'none'}.", ""]
    lines += ["| Table | Cells |", "|---|---|"]
    for table in checked:
        score = ", ".join(
            f"{symbols[verdict]} {table['score'][verdict]} {verdict}"
            for verdict in Verdict
            if verdict in table["score"]
        )
        lines.append(f"| [{table['heading']}]({table['table']}.md): {table['title']} | {score or '–'} |")
    made = [line for table in checked for line in _made(table, symbols)]
    if made:
        lines += ["", "| Cell | Expected | Ours | Seeds | Verdict |", "|---|--:|--:|--:|---|", *made]
    if any(cell.get("canary") == "missing" for table in checked for cell in _cells(table)):
        lines += ["", canary.FOOTNOTE]
    run = [claim for claim in known if claim["standing"] != Standing.NOT_RUN]
    if run:
        lines += ["", "| Claim | |", "|---|---|"]
        for claim in run:
            level = " (L0)" if claim.get("level") == "L0" else ""
            symbol = show_claims.SYMBOLS[Standing(claim["standing"])]
            standing = show_claims.said(claim["standing"], claim.get("side", ""))
            lines.append(f"| {claim['statement']}{level} | {symbol} {standing} |")
    if len(run) < len(known):
        lines += ["", f"{len(known) - len(run)} of {len(known)} claims were not run."]
    return "\n".join(lines) + "\n"


def _cells(table: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for row in table["rows"] for cell in row["cells"].values() if cell]


def _made(table: dict[str, Any], symbols: dict[Verdict, str]) -> list[str]:
    """A line for each cell that has a number, or that a failure stands for."""
    lines = []
    for row in table["rows"]:
        for key, cell in row["cells"].items():
            if not cell or not cell["needed"] or cell["verdict"] == Verdict.NOT_RUN:
                continue
            column = table["columns"][key]
            ours = "–" if cell["mean"] is None else f"{cell['mean']:.{column['decimals']}f}"
            ours += "" if cell["sd"] is None else f" ± {cell['sd']:.{column['decimals']}f}"
            mark = "°" if cell.get("canary") == "missing" else ""
            theirs = cell["expected_in_words"] or "–"
            lines.append(
                f"| {table['heading']}: {row['label']}, {column['title']} | {theirs} | {ours} |"
                f" {len(cell['values'])} | {symbols[Verdict(cell['verdict'])]} {cell['verdict']}{mark} |"
            )
    return lines
