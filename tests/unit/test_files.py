"""Locks on file systems that have none, and command lines whose streams are closed."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reproduce import files
from reproduce.data.prepare.download import cache_folder
from reproduce.errors import UserError
from reproduce.files import file_lock
from reproduce.harness.execute import supervision
from reproduce.system import REPO_ROOT


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_work_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    files._warn_without_locks.cache_clear()
    path = tmp_path / "work.lock"
    with file_lock(path, "a command"), file_lock(path, "a command"):
        assert supervision.is_locked(path)  # the process that the file names is this one
    assert capsys.readouterr().err.count(f"warning: the file system of {tmp_path} has no locks") == 1
    path.write_text("999999999")
    assert not supervision.is_locked(path)


def test_a_lock_that_another_process_has_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "work.lock"
    with file_lock(path, "a command"):
        assert supervision.is_locked(path)
        with pytest.raises(UserError, match="a command is already running here"), file_lock(path, "a command"):
            pass
    assert not supervision.is_locked(path)


@pytest.mark.parametrize(
    ("redirection", "status"), [(">&-", 0), ("2>&-", 0), ("<&- >&- 2>&-", 0), ("| head -c 1 >/dev/null", 130)]
)
def test_closed_streams(redirection: str, status: int) -> None:
    """Nothing is printed, nothing is a traceback. bash takes the status of the last command unless told otherwise."""
    command = f"set -o pipefail; {sys.executable} -m reproduce list {redirection}"
    done = subprocess.run(["bash", "-c", command], cwd=REPO_ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) in ((status, ""), (0, ""))  # head may have read all before it ends


def test_a_user_without_a_home_is_told_which_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: Path("~").expanduser())
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
        cache_folder()


def test_a_process_goes_on_only_for_the_harness_that_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "harness.lock"
    monkeypatch.delenv(supervision.SUPERVISOR, raising=False)
    assert supervision.is_supervised()  # by whoever typed the command
    monkeypatch.setenv(supervision.SUPERVISOR, f"{os.getpid()}:{path}")
    assert not supervision.is_supervised()
    with file_lock(path, "a harness"):
        assert supervision.is_supervised()
        monkeypatch.setenv(supervision.SUPERVISOR, f"1:{path}")  # ended since, and another has its place
        assert not supervision.is_supervised()
