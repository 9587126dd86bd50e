"""The checkout's code: its commit, and what of a commit can change a number that a run gives."""

from functools import cache

from reproduce.system import git

REQUIREMENTS = tuple(f"requirements/{name}" for name in ("run.txt", "detectron2.txt", "python_only"))
OF_RUNS = ("models", "evals", "reproduce/", *REQUIREMENTS)
"""What runs execute; git lists what is in `reproduce/` one by one."""
NOT_OF_RUNS = ("reproduce/__main__.py", "reproduce/cli", "reproduce/harness", "reproduce/memory.py", "reproduce/conf")
"""Of a config, what a run takes is in its name already."""


def commit() -> str:
    """The checkout's commit; empty where git knows none."""
    return git("rev-parse", "HEAD")


def dirty() -> bool:
    """Whether the checkout differs from its commit."""
    return bool(git("status", "--porcelain"))


@cache
def of_runs(commit: str) -> str:
    """The same for two commits whose runs execute the same code; the commit itself where it is not known here."""
    lines = git("ls-tree", "--full-tree", "--end-of-options", commit, *OF_RUNS).splitlines()
    return "\n".join(line for line in lines if line.partition("\t")[2] not in NOT_OF_RUNS) or commit
