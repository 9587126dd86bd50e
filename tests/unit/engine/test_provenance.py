"""Whether a result says that its code is in no commit."""

import pytest

from reproduce.engine.runs import provenance


@pytest.mark.parametrize(
    ("changed", "new", "label", "dirty"),
    [
        ("", "", None, False),
        (" M evals/knn.py", " M evals/knn.py", None, True),
        (" M README.md", "", None, True),
        ("", "?? evals/of_my_own.py", None, True),
        ("", "", "c" * 40, False),
        ("", "", "c" * 40 + "-dirty", True),
    ],
    ids=["clean", "changed", "docs changed", "a new evaluation", "image", "image of changed code"],
)
def test_git_dirty(monkeypatch: pytest.MonkeyPatch, changed: str, new: str, label: str | None, dirty: bool) -> None:
    def git(*arguments: str) -> str:
        if arguments[0] == "rev-parse":
            return "" if label else "d" * 40
        return changed if "--untracked-files=no" in arguments else new

    monkeypatch.setattr(provenance, "git", git)
    if label:
        monkeypatch.setenv("REPRODUCE_GIT_COMMIT", label)
    assert provenance.code_version()["git_dirty"] is dirty
