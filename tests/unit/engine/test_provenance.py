"""Whether a result says that its code is in no commit."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import reproduce
from reproduce import evaluate, measure, pretrain, system
from reproduce.config import RunKind
from reproduce.config.compose import compose
from reproduce.config.identity import run_dir
from reproduce.engine.runs import provenance
from reproduce.engine.runs.attempts import Attempts
from reproduce.engine.runs.provenance import CodeState, Origin
from reproduce.files import read_json
from reproduce.harness import revision
from tests.runs import call


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


def _fails(*_: str) -> tuple[str, str]:
    return "", "fatal: detected dubious ownership in repository at '/app'"


def test_what_git_cannot_tell_is_not_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Git refuses a checkout that another user owns; an image's label is of another checkout, perhaps."""
    monkeypatch.setattr(system, "_ask_git", _fails)
    monkeypatch.setenv("REPRODUCE_GIT_COMMIT", "c" * 40)
    assert provenance.code_version() == {
        "git_commit": None,
        "git_dirty": True,
        "image_digest": None,
        "git_problem": "fatal: detected dubious ownership in repository at '/app'",
    }
    assert revision.dirty()


def test_a_checkout_of_another_user_is_not_clean(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert provenance.code_version()["git_dirty"] is False
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    found = provenance.code_version()
    assert found["git_dirty"] is True and "dubious ownership" in str(found["git_problem"])


def test_a_users_settings_and_hooks_hide_no_change(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Git answers for this checkout, whatever repository a hook is of, and names new files, whatever a user ignores."""
    commit = provenance.code_version()["git_commit"]
    for name in ("GIT_DIR", "GIT_WORK_TREE"):
        monkeypatch.setenv(name, str(checkout.with_name("elsewhere")))
    assert provenance.code_version()["git_commit"] == commit
    new = next(path for path in checkout.rglob("*.py")).with_name("zz_new.py")
    new.write_text("x = 1\n")
    settings = checkout.with_name("gitconfig")
    checkout.with_name("ignored").write_text("zz_new.py\n")
    settings.write_text(
        f"[status]\n\tshowUntrackedFiles = no\n[core]\n\texcludesFile = {checkout.with_name('ignored')}\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    assert provenance.code_version()["git_dirty"] is True


@pytest.mark.parametrize("mark", ["assume-unchanged", "skip-worktree"])
def test_a_change_that_is_hidden_from_git_is_not_clean(checkout: Path, mark: str) -> None:
    file = next(path for path in checkout.rglob("*.py"))
    assert not system.git_problem()
    subprocess.run(["git", "-C", str(checkout), "update-index", f"--{mark}", str(file)], check=True)
    file.write_text(file.read_text() + "\nx = 1\n")
    found = provenance.code_version()
    assert found["git_dirty"] is True and f"changes of {file.relative_to(checkout)}" in str(found["git_problem"])
    assert revision.dirty()


def test_without_repository_and_label_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "REPO_ROOT", tmp_path)
    assert provenance.code_version()["git_dirty"] is True
    monkeypatch.setenv("REPRODUCE_GIT_COMMIT", "c" * 40)
    assert provenance.code_version() == {"git_commit": "c" * 40, "git_dirty": False, "image_digest": None}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with two modules, one of the harness, imported a while ago."""
    monkeypatch.setattr(system, "REPO_ROOT", tmp_path)
    monkeypatch.setattr(reproduce, "IMPORT_STARTED", time.time() + 3600)
    monkeypatch.delenv("REPRODUCE_GIT_COMMIT", raising=False)
    for name in ("evals/knn.py", "reproduce/harness/report.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("k = 1")
    author = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for words in (["init", "--quiet"], ["add", "."], [*author, "commit", "--quiet", "--message", "all"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    return tmp_path


def entries(start: Origin) -> dict[str, Any]:
    return start.entries(CodeState.now(), [])


def test_code_that_stays_the_same_is_clean(checkout: Path) -> None:
    start = Origin.now()
    (checkout / "reproduce/harness/report.py").write_text("k = 2")  # no run executes it
    found = entries(start)
    assert found["git_dirty"] is False and "code_changed" not in found
    assert len(found["git_commit"]) == 40 and found["packages"]["torch"] and found["hardware"]


def test_code_that_is_restored_during_the_run_is_what_ran(checkout: Path) -> None:
    (checkout / "evals/knn.py").write_text("k = 2")
    start = Origin.now()
    (checkout / "evals/knn.py").write_text("k = 1")
    assert provenance.code_version()["git_dirty"] is False
    found = entries(start)
    assert found["git_dirty"] is True and found["code_changed"] == ["evals/knn.py"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda file: file.write_text("k = 2"),
        lambda file: file.unlink(),
        lambda file: file.with_name("own.py").write_text("k = 2"),
    ],
    ids=["edited", "removed", "added"],
)
def test_code_that_changes_during_the_run_is_named(checkout: Path, edit: Callable[[Path], object]) -> None:
    start = Origin.now()
    edit(checkout / "evals" / "knn.py")
    found = entries(start)
    assert found["git_dirty"] is True
    assert found["code_changed"] in (["evals/knn.py"], ["evals/own.py"])


def test_code_restored_while_it_was_imported_is_named(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "IMPORT_STARTED", (checkout / "evals/knn.py").stat().st_ctime - 1)
    found = entries(Origin.now())
    assert found["git_dirty"] is True and found["code_changed"] == ["evals/knn.py"]


def test_the_code_of_a_resumed_attempt_counts(checkout: Path, tmp_path: Path) -> None:
    (checkout / "evals/knn.py").write_text("k = 2")
    first = Attempts(tmp_path / "run")
    dirty = CodeState.now().summary()
    first.begin(dirty)
    (checkout / "evals/knn.py").write_text("k = 1")
    start, second = Origin.now(), Attempts(tmp_path / "run")
    second.begin(start.code.summary())
    found = start.entries(CodeState.now(), second.resumed_code)
    assert found["git_dirty"] is True and found["resumed_code"] == [dirty]
    second.start_over(start.code.summary())  # it found no checkpoint
    found = start.entries(CodeState.now(), second.resumed_code)
    assert found["git_dirty"] is False and "resumed_code" not in found
    third = Attempts(tmp_path / "run")
    third.begin(start.code.summary())
    assert start.entries(CodeState.now(), third.resumed_code)["git_dirty"] is False


def test_a_fork_counts_its_parents_pages_once() -> None:
    """A child that writes nothing adds nothing to the peak of a process that holds 300 MB."""
    code = """
import os
from reproduce.engine.runs.provenance import peak_memory_gb
held = b"x" * 300_000_000
before = peak_memory_gb()
if not (child := os.fork()):
    os._exit(0)
os.waitpid(child, 0)
print(peak_memory_gb() / before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1 <= float(done.stdout) < 1.1


@pytest.mark.parametrize("kind", ["pretrain", "evaluate", "measure"])
def test_code_of_an_attempt_that_left_nothing_does_not_count(
    kind: RunKind, data: Path, random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What keeps no checkpoint begins anew: an untrained network, nearest neighbors, a measurement."""
    common = ("logging.wandb=false", "cluster.num_workers=0", f"paths.results={tmp_path}", f"paths.data_root={data}")
    main, asked = {
        "pretrain": (pretrain.main, ("experiment=random",)),
        "evaluate": (evaluate.main, ("eval=knn", f"checkpoint={random_checkpoint}", "protocol.num_neighbors=[1]")),
        "measure": (measure.main, ("experiment=random", "measurement=parameters")),
    }[kind]
    folder = run_dir(compose(kind, [*common, *asked]))
    Attempts(folder).begin({"git_commit": "c" * 40, "git_dirty": True, "code_sha256": "d" * 64})
    status, said = call(main, monkeypatch, *common, *asked)
    assert status == 0, said
    result = read_json(folder / "result.json")
    assert result["num_attempts"] == 2
    assert "resumed_code" not in result["provenance"]
