"""Which commits' results may stand side by side: those whose runs execute the same code."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reproduce import system
from reproduce.harness import revision


@pytest.fixture
def commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], str]]:
    """Writes a file, commits it, and tells the commit."""
    monkeypatch.setattr(system, "REPO_ROOT", tmp_path)
    revision.run_code_fingerprint.cache_clear()
    system.git("init", "--quiet")

    def write(name: str, text: str) -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        author = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        for words in (["add", name], [*author, "commit", "--quiet", "--message", name]):
            subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
        return revision.commit()

    yield write
    revision.run_code_fingerprint.cache_clear()


def test_fingerprint_depends_only_on_code_that_runs_execute(commit: Callable[[str, str], str]) -> None:
    first = commit("models/methods/swav.py", "loss = 1")
    for name in (
        "README.md",
        "reproduce/harness/plan/model.py",
        "reproduce/conf/swav.yaml",
        "requirements/dev.txt",
        "tests/a",
    ):
        assert revision.run_code_fingerprint(commit(name, "new")) == revision.run_code_fingerprint(first), name
    seen = {revision.run_code_fingerprint(first)}
    for name in (
        "models/methods/swav.py",
        "evals/knn.py",
        "reproduce/engine/loop.py",
        "reproduce/pretrain.py",
        "requirements/run.txt",
    ):
        seen.add(revision.run_code_fingerprint(commit(name, "new")))
    assert len(seen) == 6


def test_fingerprint_of_an_unknown_commit_is_the_commit(commit: Callable[[str, str], str]) -> None:
    commit("models/methods/swav.py", "")
    assert revision.run_code_fingerprint("a" * 40) == "a" * 40
    assert revision.run_code_fingerprint("<b>-x</b>") == "<b>-x</b>"


def test_comments_docstrings_and_layout_are_no_code(commit: Callable[[str, str], str]) -> None:
    first = commit("evals/knn.py", "def vote(x):\n    return x + 1\n")
    reworded = '"""Vote."""\n\ndef vote(x):  # by neighbors\n    """Return one more."""\n    return (\n        x + 1)\n'
    second = commit("evals/knn.py", reworded)
    assert revision.run_code_fingerprint(second) == revision.run_code_fingerprint(first)
    changed = {revision.run_code_fingerprint(commit("evals/knn.py", reworded.replace("1", number))) for number in "23"}
    assert len({revision.run_code_fingerprint(first), *changed}) == 3
    broken = {revision.run_code_fingerprint(commit("evals/knn.py", text)) for text in ("def", "def # other")}
    assert len(broken) == 2


@pytest.mark.parametrize(("label", "dirty"), [("c" * 40, False), ("c" * 40 + "-dirty", True), ("", False)])
def test_an_image_has_the_commit_that_it_was_built_from(
    label: str, dirty: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no git repository in it, and results of two images must not be taken for one's."""
    monkeypatch.setattr(system, "REPO_ROOT", tmp_path)
    monkeypatch.setenv("REPRODUCE_GIT_COMMIT", label)
    assert (revision.commit(), revision.dirty()) == (label, dirty)
    assert revision.run_code_fingerprint(label) != revision.run_code_fingerprint("d" * 40)
