"""The command for machines without .venv: what it lists as missing, its time limit, its stand-in for torchcodec."""

import importlib.util
import os
import warnings
from pathlib import Path

import pytest
import torch
from torchcodec.decoders import decode_jpeg

from tests.gpu import bare_machine


def test_missing_packages_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bare_machine, "MODULES", {"torch": "torch", "no_such_module": "no-such-package"})
    assert bare_machine.main(["--out", str(tmp_path)]) == 2
    said = capsys.readouterr().out
    assert said == "error: this machine has no no-such-package: put their wheels into the folder --wheels\n"


def test_nothing_is_missing_where_everything_is_installed() -> None:
    assert bare_machine.missing_packages(dict(os.environ)) == []
    assert bare_machine.has_torchcodec(dict(os.environ))


@pytest.mark.parametrize(
    ("program", "seconds", "passed", "said"),
    [
        ("echo done", 60, True, "passed in"),
        ("echo done; exit 3", 60, False, "failed (3) in"),
        ("echo done; exec sleep 600", 2, False, "failed (stopped after 2 s) in"),
    ],
    ids=["passed", "failed", "too long"],
)
def test_a_command_is_logged_and_limited(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], program: str, seconds: float, passed: bool, said: str
) -> None:
    log = tmp_path / "log.txt"
    assert bare_machine.run("one", ["sh", "-c", program], dict(os.environ), log, seconds) == passed
    assert log.read_text() == "done\n"
    assert f"one: {said}" in capsys.readouterr().out


def test_the_stand_in_decodes_as_torchcodec_does(data: Path) -> None:
    path = bare_machine.STAND_INS / "torchcodec/decoders.py"
    spec = importlib.util.spec_from_file_location("stand_in", path)
    assert spec is not None and spec.loader is not None
    stand_in = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stand_in)
    encoded = [file.read_bytes() for file in sorted((data / "imagenet" / "val").glob("*/*.jpg"))[:3]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision deprecated its decoder
        found = stand_in.decode_jpeg(encoded, mode="RGB", device="cpu")
        one = stand_in.decode_jpeg(encoded[0], mode="RGB")
    assert torch.equal(one, found[0])
    for pixels, content in zip(found, encoded, strict=True):
        assert torch.equal(pixels, decode_jpeg(content, mode="RGB"))
