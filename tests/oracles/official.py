"""Official code as an oracle: run from a folder of checkouts, without a line of it in this repository."""

import ast
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from reproduce.engine.distributed.collectives import is_main, process_group
from tests.runs import run

VARIABLE = "ORACLES"
"""The environment variable that names the folder. It holds a checkout per repository (README.md)."""


def checkout(name: str, file: str) -> Path:
    """Return the checkout of a repository; skip the test if it, or the file that is needed of it, is not there."""
    root = os.environ.get(VARIABLE)
    if not root:
        pytest.skip(f"{VARIABLE} names no folder of official checkouts (tests/oracles/README.md)")
    path = Path(root) / name
    if not (path / file).is_file():
        pytest.skip(f"{path / file} is missing (tests/oracles/README.md says which commit has it)")
    return path


def definitions(file: Path, *names: str, **namespace: Any) -> dict[str, Any]:
    """Execute only these functions and classes of a file, in `namespace`: not its imports, nor its command line.

    Returns the namespace, in which globals such as `args` can still be set.
    """
    body = ast.parse(file.read_text()).body
    wanted: list[ast.stmt] = [
        node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in names
    ]
    assert len(wanted) == len(names), f"{file} lacks some of {names}"
    exec(compile(ast.Module(wanted, []), str(file), "exec"), namespace)
    return namespace


def module(file: Path) -> ModuleType:
    """Import a file that needs nothing but torch."""
    spec = importlib.util.spec_from_file_location(f"official_{file.stem}", file)
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def stay_on_the_cpu() -> None:
    """Let `.cuda()`, which the official code calls everywhere, return its object. For processes of their own only."""

    def itself(anything: Any, *_: Any, **__: Any) -> Any:
        return anything

    torch.Tensor.cuda = itself  # type: ignore[assignment]
    nn.Module.cuda = itself  # type: ignore[assignment]


def save_outcome(compute: Callable[[Path], Any], checkouts: str, output: str) -> None:
    """Save what all processes compute together, in double precision on CPUs."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    stay_on_the_cpu()
    with process_group():
        outcome = compute(Path(checkouts))
        if is_main():
            torch.save(outcome, output)


def outcome_of(module: str, part: str, official: str, processes: int, output: Path) -> dict[str, Any]:
    """Return what `save_outcome` saves in a module's processes; skip without `official`, a file of the checkouts."""
    name, _, file = official.partition("/")
    done = run(module, part, str(checkout(name, file).parent), str(output), processes=processes)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = torch.load(output, weights_only=True)
    return found
