"""Which commits' results may stand side by side: those whose runs execute the same code."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reproduce import here
from reproduce.harness import code


@pytest.fixture
def commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], str]]:
    """Writes a file, commits it, and tells the commit."""
    monkeypatch.setattr(here, "CHECKOUT", tmp_path)
    code.of_runs.cache_clear()
    here.git("init", "--quiet")

    def write(name: str, text: str) -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        author = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        for words in (["add", name], [*author, "commit", "--quiet", "--message", name]):
            subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
        return code.commit()

    yield write
    code.of_runs.cache_clear()


def test_only_what_runs_execute_tells_commits_apart(commit: Callable[[str, str], str]) -> None:
    first = commit("models/swav.py", "loss = 1")
    for name in (
        "README.md",
        "reproduce/harness/plan.py",
        "reproduce/conf/swav.yaml",
        "requirements/dev.txt",
        "tests/a",
    ):
        assert code.of_runs(commit(name, "new")) == code.of_runs(first), name
    seen = {code.of_runs(first)}
    for name in (
        "models/swav.py",
        "evals/knn.py",
        "reproduce/engine/loop.py",
        "reproduce/pretrain.py",
        "requirements/run.txt",
    ):
        seen.add(code.of_runs(commit(name, "new")))
    assert len(seen) == 6


def test_a_commit_that_is_not_known_here_is_like_itself_only(commit: Callable[[str, str], str]) -> None:
    commit("models/swav.py", "")
    assert code.of_runs("a" * 40) == "a" * 40
    assert code.of_runs("<b>-x</b>") == "<b>-x</b>"
