"""The checkout's commit, and the part of a commit that can change a number of a run."""

from functools import cache

from reproduce.system import NOT_RUN_CODE, git, git_problem

REQUIREMENTS = tuple(f"requirements/{name}" for name in ("run.txt", "detectron2.txt", "python_only"))
RUN_CODE = ("models", "evals", "reproduce/", *REQUIREMENTS)
"""The code that runs execute; git lists the content of `reproduce/` entry by entry."""


def commit() -> str:
    """Return the checkout's commit, or "" outside of a git repository."""
    return git("rev-parse", "HEAD")


def dirty() -> bool:
    """Return whether the checkout differs from its commit, or may: if git can't tell, it is not clean."""
    return bool(git("status", "--porcelain") or git_problem())


@cache
def run_code_fingerprint(commit: str) -> str:
    """Return a text that is equal for two commits whose runs execute the same code; an unknown commit itself."""
    lines = git("ls-tree", "--full-tree", "--end-of-options", commit, *RUN_CODE).splitlines()
    return "\n".join(line for line in lines if line.partition("\t")[2] not in NOT_RUN_CODE) or commit
