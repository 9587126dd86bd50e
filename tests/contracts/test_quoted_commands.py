"""The pages quote no command that would be refused for its words: targets, variables, tables, configs, options."""

import argparse
import re
import shlex
import subprocess
from collections.abc import Iterator

import pytest

from models.zoo import entries
from reproduce.cli.parser import build_parser
from reproduce.cli.requests import table_names
from reproduce.config.compose import group_options
from reproduce.harness.spec import claims, tables
from reproduce.system import REPO_ROOT

PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((REPO_ROOT / "docs").glob("*.md")))]
FENCED = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INSTEAD = {
    "reproduce-<name>": "reproduce-table7",
    "evaluate-<name>": "evaluate-knn",
    "pretrain-<name>": "pretrain-random",
    "pretrain-...": "pretrain-random",
    "<scale>": "smoke",
    "released:NAME": "released:swav_800ep",
}
"""What the pages write for any name, and one that there is."""


def quoted(page: str) -> set[str]:
    """Every `make ...` in a page's code, without what is said about it."""
    text = (REPO_ROOT / page).read_text()
    lines = [line for block in FENCED.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", FENCED.sub("", text))]
    commands = [part for line in lines for part in re.sub(r"\s+# .*|\s\.\.\.$", "", line).split(" && ")]
    found = {match[1] for command in commands if (match := re.search(r"(?:^|\s)(make [a-z].*)", command))}
    for written, meant in INSTEAD.items():
        found = {command.replace(written, meant) for command in found}
    return found


@pytest.fixture(scope="module")
def dry_runs() -> dict[str, tuple[int, str]]:
    """Exit status and output of each quoted command, as make itself would carry it out, from one shell."""
    commands = sorted({command for page in PAGES for command in quoted(page)})
    words = [shlex.join(["make", "--dry-run", *shlex.split(command)[1:]]) for command in commands]
    lines = [f"{dry_run} 2>&1; printf '\\0%s\\0' $?" for dry_run in words]
    done = subprocess.run(["sh", "-c", "\n".join(lines)], cwd=REPO_ROOT, capture_output=True, text=True, check=True)
    said, status = done.stdout.split("\0")[0:-1:2], done.stdout.split("\0")[1::2]
    return {command: (int(code), out) for command, code, out in zip(commands, status, said, strict=True)}


def as_parsed(dry_run: str) -> Iterator[argparse.Namespace]:
    """What `python -m reproduce` is asked for by a command."""
    for line in dry_run.replace("\\\n", " ").splitlines():
        _, started, arguments = line.partition(" -m reproduce ")
        if started:
            yield build_parser().parse_args(shlex.split(arguments))


@pytest.mark.parametrize(("page", "command"), [(page, command) for page in PAGES for command in sorted(quoted(page))])
def test_a_quoted_command_names_what_exists(page: str, command: str, dry_runs: dict[str, tuple[int, str]]) -> None:
    status, out = dry_runs[command]
    assert status == 0, out
    variables = re.findall(r"^([A-Z_]+) [?]=", (REPO_ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"\s([A-Z_]+)=", command)) <= {*variables, "UPGRADE"}
    for options in as_parsed(out):
        for name in table_names(options) if "tables" in options else ():
            assert name == claims.TARGET or name in tables.names(options.scale)
        if "group" in options:
            assert options.choice in group_options(options.group)
        checkpoint = getattr(options, "checkpoint", "")
        if checkpoint.startswith(entries.PREFIX):
            entries.get_entry(checkpoint.removeprefix(entries.PREFIX))


@pytest.mark.parametrize("page", PAGES)
def test_quoted_modules_and_links_exist(page: str) -> None:
    text = (REPO_ROOT / page).read_text()
    for module in re.findall(r"python -m ((?:reproduce|tests)[\w.]*)", text):
        path = REPO_ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
        assert (REPO_ROOT / page).parent.joinpath(target).exists(), target
    for script in re.findall(r"(?:bash|/python) ([\w.]+/[\w./]+)", text):
        assert (REPO_ROOT / script).exists(), script


def test_the_pages_quote_commands() -> None:
    assert {"make smoke", "make reproduce-table3"} <= quoted("README.md")
    assert "make plan-table3 SCALE=paper DATA=/datasets" in quoted("README.md")
