"""The checkout's commit, and the part of a commit that can change a number of a run."""

import ast
import hashlib
import re
from functools import cache

from reproduce.system import NOT_RUN_CODE, git, git_problem, image_commit

REQUIREMENTS = tuple(f"requirements/{name}" for name in ("run.txt", "detectron2.txt", "python_only"))
RUN_CODE = ("models", "evals", "reproduce/", *REQUIREMENTS)
"""The code that runs execute; git lists the content of `reproduce/` entry by entry."""

COMMIT = re.compile("[0-9a-f]{40}")


def commit() -> str:
    """Return the checkout's commit, or that of the image; "" outside of a git repository."""
    return git("rev-parse", "HEAD") or image_commit()


def file_at(commit: str, path: str) -> str:
    """Return the text of a file of the checkout at a commit; "" if git does not know the commit or the file."""
    if not COMMIT.fullmatch(commit):
        return ""
    return git("cat-file", "blob", f"{commit}:{path}")


def uncommitted(folder: str) -> list[str]:
    """Return the files below a folder of the checkout that differ from its commit."""
    return [line.split(maxsplit=1)[-1] for line in git("status", "--porcelain", "--", folder).splitlines()]


def dirty() -> bool:
    """Return whether the checkout differs from its commit, or may: if git can't tell, it is not clean."""
    if label := image_commit():
        return label.endswith("-dirty")
    return bool(git("status", "--porcelain") or git_problem())


@cache
def run_code_fingerprint(commit: str) -> str:
    """Return a text that is equal for two commits whose runs execute the same code; an unknown commit itself.

    Comments, docstrings and formatting are no code.
    """
    if not COMMIT.fullmatch(commit):
        return commit
    lines = git("ls-tree", "-r", "--full-tree", "--end-of-options", commit, *RUN_CODE).splitlines()
    entries = [(line.split()[2], line.partition("\t")[2]) for line in lines]
    run_code = [
        f"{_code_of(blob) if path.endswith('.py') else blob} {path}"
        for blob, path in entries
        if not any(path == each or path.startswith(f"{each}/") for each in NOT_RUN_CODE)
    ]
    return "\n".join(run_code) or commit


@cache
def _code_of(blob: str) -> str:
    """Return a hash of a Python file's code; of the text if it can't be parsed."""
    text = git("cat-file", "blob", blob)
    try:
        module = _WithoutDocstrings().visit(ast.parse(text))
    except SyntaxError:
        return blob
    return hashlib.sha256(ast.dump(module).encode()).hexdigest()


class _WithoutDocstrings(ast.NodeTransformer):
    """Removes strings that are statements: docstrings of modules, classes, functions and constants."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        """Return the node, or None for a string."""
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else node
