"""One place for each thing: no function stands twice, no interval for polling, and nothing of two sides of a merge."""

import ast
import re
from collections import defaultdict
from functools import cache

from reproduce.system import REPO_ROOT, git

ROOMS = ("docker", "evals", "models", "reproduce", "requirements", "tests")
MIN_NODES = 30
"""Size of a function, in nodes of the syntax tree, from which a copy counts; `__len__` is smaller."""
WITH_OWN_INTERVAL = {"reproduce/system.py", "reproduce/harness/preflight/run.py"}


@cache
def modules() -> dict[str, ast.Module]:
    paths = [path for room in ROOMS for path in sorted((REPO_ROOT / room).rglob("*.py"))]
    return {str(path.relative_to(REPO_ROOT)): ast.parse(path.read_text()) for path in paths}


def test_no_function_stands_twice() -> None:
    places = defaultdict(set)
    for path, module in modules().items():
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                body = node.body[ast.get_docstring(node, clean=False) is not None :]
                if sum(1 for statement in body for _ in ast.walk(statement)) >= MIN_NODES:
                    places["".join(map(ast.dump, body))].add(f"{path}:{node.lineno} {node.name}")
    assert not [sorted(found) for found in places.values() if len(found) > 1]


def test_one_interval_for_polling_this_machine() -> None:
    found = {
        path
        for path, module in modules().items()
        for node in module.body
        if isinstance(node, ast.Assign) and "POLL_SECONDS" in map(ast.unparse, node.targets)
    }
    assert found == WITH_OWN_INTERVAL


def test_no_conflict_of_a_merge_is_left() -> None:
    marker = re.compile(rb"^(<{7} |>{7} |={7}$)", re.MULTILINE)
    tracked = git("ls-files").splitlines()
    assert tracked and not [path for path in tracked if marker.search((REPO_ROOT / path).read_bytes())]
