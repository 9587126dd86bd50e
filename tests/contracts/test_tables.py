"""Every table under `tables/` loads, names what exists, and prints what a second transcription of the paper prints."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from reproduce import config
from reproduce.harness import tables

GOLDEN: dict[str, Any] = yaml.safe_load((Path(__file__).parents[1] / "golden" / "paper_tables.yaml").read_text())
EVERY = [(scale, name) for scale in tables.scales() for name in tables.names(scale)]
PAPER = tables.names("paper")


@pytest.mark.parametrize(("scale", "name"), EVERY)
def test_a_table_names_what_exists(scale: str, name: str) -> None:
    table = tables.load(name, scale)
    assert {row.pretrain for row in table.rows if row.pretrain} <= set(config.options("experiment"))
    assert {column.eval for column in table.columns.values() if column.eval} <= set(config.options("eval"))
    assert len({row.method for row in table.rows}) == len(table.rows)


@pytest.mark.parametrize(("scale", "name"), EVERY)
def test_a_margin_says_where_it_comes_from(scale: str, name: str) -> None:
    for column in tables.load(name, scale).columns.values():
        assert column.margin is None or (column.margin.points > 0 and len(column.margin.source) > 10)


@pytest.mark.parametrize("name", PAPER)
def test_rows_and_columns_are_the_papers(name: str) -> None:
    table = tables.load(name, "paper")
    assert list(table.columns) == GOLDEN[name]["columns"]
    assert [row.method for row in table.rows] == [row["method"] for row in GOLDEN[name]["rows"]]
    assert table.expected == "printed"


CELLS = [
    (name, index, column)
    for name in PAPER
    for index in range(len(GOLDEN[name]["rows"]))
    for column in GOLDEN[name]["columns"]
]


@pytest.mark.parametrize(("name", "index", "column"), CELLS)
def test_a_cell_is_the_papers(name: str, index: int, column: str) -> None:
    row, printed = tables.load(name, "paper").rows[index], GOLDEN[name]["rows"][index]
    assert row.cells[column] == printed[column]
    assert (column in row.rerun_by_authors) == (column in printed.get("rerun_by_authors", []))
    if printed[column] is not None:
        decimals = tables.load(name, "paper").columns[column].decimals
        assert f"{printed[column]:.{decimals}f}" == str(printed[column])
