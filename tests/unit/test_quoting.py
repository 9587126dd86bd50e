"""Paths reach a run as they are, whatever Hydra would make of them."""

import os
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from reproduce.__main__ import main
from reproduce.config.compose import compose
from reproduce.config.quoting import hydra_quote, quote_paths
from reproduce.errors import UserError, run_cli

NUMBERS = ["2012_07", "1e5", "1_0", "007", "0x10", ".5", "nan", "-inf"]
OTHERS = [
    *("null", "True", "a b", "a'b", "x=y", "[1]", "a,b", "a\\", "./2012_07", "plain", "/a/2012_07", "~/x", "ünï"),
    *("$HOME/x", "{x}", "a#b", "%s"),
]  # fmt: skip


def data_root(*overrides: str) -> str:
    return str(compose("evaluate", ["eval=knn", "checkpoint=x", "scale=smoke", *overrides]).paths.data_root)


@pytest.mark.parametrize("value", [*NUMBERS, *OTHERS])
def test_every_text_comes_through(value: str) -> None:
    override = OverridesParser.create().parse_override(f"paths.data_root={hydra_quote(value)}")
    assert override.value() == value and isinstance(override.value(), str)


def test_every_text_comes_through_a_config() -> None:
    value = "2012_07"
    assert data_root(f"paths.data_root={hydra_quote(value)}") == value


@pytest.mark.parametrize("value", ["plain", "/data/imagenet", "../x", "a.b-c_d", "./2012_07"])
def test_plain_paths_stay_as_they_are(value: str) -> None:
    assert hydra_quote(value) == value


def test_numbers_are_folders_in_overrides_of_ones_own() -> None:
    for value in NUMBERS[:-1]:
        assert quote_paths(f"paths.data_root={value}") == f"paths.data_root={hydra_quote(value)}"
    assert quote_paths("seed=1e5") == "seed=1e5"
    assert quote_paths("paths.data_root='1e5'") == "paths.data_root='1e5'"
    cfg = compose("evaluate", ["eval=knn", "checkpoint=1e5", "scale=smoke", "paths.data_root=2012_07"])
    assert (cfg.checkpoint, cfg.paths.data_root) == ("1e5", "2012_07")


@pytest.mark.parametrize("value", ["${SCRATCH}/x", "a/${b}", "${oc.env:HOME}"])
def test_a_variable_that_no_shell_expanded_is_a_sentence(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="has a variable that no shell has expanded"):
        hydra_quote(value)
    words = ["--data", value, "--data-config", "cifar10", "--checkpoint", os.devnull]
    assert run_cli(lambda: main(["evaluate", "knn", *words])) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {value!r} has a variable") and said.count("\n") == 1


@pytest.mark.parametrize("content", ["5", "1e5", "[]", "text", "2012-07-01", "imagenet: 5", "imagenet: [a]"])
def test_a_data_config_without_datasets_is_a_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(content)
    with pytest.raises(UserError):
        data_root(f"data={tmp_path / 'own.yaml'}")


def test_numbers_in_a_data_config_are_folders(tmp_path: Path) -> None:
    text = "imagenet: {name: 2012_07, source: 1e5, layout: folders, root: 007, train: 12:30:45, val: yes}\nname: 1.50\n"
    (tmp_path / "2012.yaml").write_text(text)
    cfg = compose("evaluate", ["eval=knn", "checkpoint=x", "scale=smoke", f"data={tmp_path / '2012.yaml'}"])
    found = cfg.dataset
    assert (cfg.data.name, found.name, found.source, found.root) == ("1.50", "2012_07", "1e5", "007")
    assert (found.train, found.val) == ("12:30:45", "yes")
