"""A run's process is independent of what launchers and schedulers left in the environment."""

import multiprocessing
import multiprocessing.util
import os
import tempfile
from multiprocessing.connection import Listener
from pathlib import Path

import pytest

from reproduce.engine.distributed import processes
from reproduce.engine.distributed.collectives import process_group, rank, world_size
from reproduce.errors import UserError
from reproduce.system import LAUNCHER, LAUNCHER_VARIABLES, without_launcher

LEFT = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "3", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*LAUNCHER_VARIABLES, LAUNCHER):
        monkeypatch.delenv(name, raising=False)
    for name, value in LEFT.items():
        monkeypatch.setenv(name, value)


def test_a_process_without_launcher_is_alone(left: None, capsys: pytest.CaptureFixture[str]) -> None:
    processes.prepare_process()
    assert not set(LEFT) & set(os.environ)
    with process_group():
        assert (rank(), world_size()) == (0, 1)
    said = capsys.readouterr().err
    assert said.startswith("RANK=3, WORLD_SIZE=4, LOCAL_RANK=3, ") and said.count("\n") == 1


def test_of_a_launcher_that_has_ended_nothing_counts(left: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCHER, "1" if os.getppid() != 1 else "2")
    processes.prepare_process()
    assert "WORLD_SIZE" not in os.environ


@pytest.mark.parametrize("name", [LAUNCHER, "TORCHELASTIC_RUN_ID"])
def test_ranks_of_a_launcher_keep_their_place(left: None, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, str(os.getppid()))
    processes.prepare_process()
    assert {key: os.environ.get(key) for key in LEFT} == LEFT


def test_nothing_left_is_nothing_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for key in LAUNCHER_VARIABLES:
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("WORLD_SIZE", "1")
    processes.prepare_process()
    assert capsys.readouterr().err == ""


def test_the_environment_of_a_new_process_has_no_launcher() -> None:
    assert without_launcher({**LEFT, LAUNCHER: "7", "TORCHELASTIC_RUN_ID": "x", "HOME": "/h"}) == {"HOME": "/h"}


@pytest.mark.parametrize("length", [60, 76, 110, 200])
def test_workers_open_sockets_however_long_the_path_of_tmpdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    long = tmp_path
    while len(str(long)) < length:
        long /= "x" * min(100, max(1, length - len(str(long)) - 1))
    long.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.delitem(multiprocessing.process.current_process()._config, "tempdir", raising=False)  # type: ignore[attr-defined]
    processes.use_short_socket_folder()
    assert tempfile.gettempdir() == str(long)  # other files stay where the user wants them
    with Listener(family="AF_UNIX") as listener:
        assert os.path.exists(str(listener.address))
    monkeypatch.delitem(multiprocessing.process.current_process()._config, "tempdir", raising=False)  # type: ignore[attr-defined]


def test_without_a_short_folder_it_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 100)))
    monkeypatch.setattr(processes, "SHORT_FOLDERS", (str(tmp_path / "none"),))
    with pytest.raises(UserError, match="is too long for the sockets of data-loader workers"):
        processes.use_short_socket_folder()
