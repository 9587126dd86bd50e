"""A table's YAML is checked as it is read: the file, the key, and what would be right."""

from pathlib import Path

import pytest
import yaml

from reproduce.errors import UserError
from reproduce.harness.spec import tables


def change(checkout: Path, edit: str) -> None:
    """Run `edit` on the plain data `table` of the paper's Table 7."""
    path = checkout / "tables" / "paper" / "table7.yaml"
    table = yaml.safe_load(path.read_text())
    exec(edit, {"table": table})
    path.write_text(yaml.safe_dump(table, sort_keys=False))


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ("table['captoin'] = table.pop('caption')", "no key 'captoin' in the file: did you mean 'caption'"),
        ("del table['section']", "the file needs a value for 'section'"),
        ("table['expected'] = 'recordet'", "expected is 'recordet'; did you mean 'recorded'"),
        ("table['table'] = 'table8'", "the file is named 'table7'"),
        ("table['columns']['knn20']['decimals'] = 'one'", r"columns.knn20.decimals should be of type int"),
        ("table['columns']['knn20']['eval'] = None", "columns.knn20 needs either an eval or a reason"),
        ("del table['columns']['knn20']['metric']", "columns.knn20 names an eval; it needs a metric"),
        ("del table['columns']['knn20']['margin']", "columns.knn20 needs a margin"),
        ("del table['columns']['knn20']['margin']['source']", "columns.knn20.margin needs a value for 'source'"),
        ("table['rows'][3]['not_run'] = 'because'", r"rows\[3\] \(SwAV\) needs exactly one of"),
        ("del table['rows'][3]['cells']['knn20']", r"rows\[3\] \(SwAV\): cells should be those of the columns"),
        ("table['rows'][3]['rerun_by_authors'] = ['knn2']", "no column 'knn2': did you mean 'knn20'"),
        ("table['rows'][3]['cells'] = 59.2", r"rows\[3\].cells should be of type"),
        ("table['rows'] = 3", "rows should be of type"),
        ("table['columns']['knn20']['metric'] = 'knn2'", r"knn_head reports no metric 'knn2': did you mean 'knn20'"),
        ("table['columns']['knn20']['metric'] = 'top1'", r"columns.knn20: knn_head reports no metric 'top1'"),
        (
            "table['columns']['knn20']['eval'] = 'knn_haed'",
            r"there is no evaluation 'knn_haed': did you mean 'knn_head'",
        ),
        ("table['columns']['knn20']['decimals'] = -1", r"columns.knn20.decimals is -1: it must be from 0 to 6"),
        ("table['columns']['knn20']['num_runs'] = 0", r"columns.knn20.num_runs is 0: it must be from 1"),
        ("table['columns']['knn20']['margin']['points'] = float('inf')", "inf in line 17 is no finite number"),
        ("table['columns']['knn20']['margin']['points'] = 10**400", "a number has 401 digits"),
        ("table['columns']['knn20']['margin']['points'] = -1.0", r"margin.points is -1: a margin must be more than 0"),
        ("table['rows'][3]['min_points_above_control'] = -100.0", r"min_points_above_control is -100: it must be 0 or"),
        ("table['rows'][3]['cells']['knn20'] = float('nan')", r"nan in line \d+ is no finite number"),
        (
            "table['rows'][3] |= dict(errata={'knn20': dict(value=1, source='')}, cells=dict(knn20='4h09', knn200=1))",
            "errata.knn20 corrects nothing",
        ),
        ("table['rows'][3]['cells']['knn20'] = '4h9'", r"cells.knn20 is '4h9': write a number, 4h09"),
        ("table['rows'][3]['cells']['knn20'] = True", r"rows\[3\].cells.knn20 should be of type float"),
        ("table['rows'][3]['method'] = 'LA'", "two rows are named 'LA'"),
        ("table['rows'][3]['margins'] = {'knn': table['columns']['knn20']['margin']}", "no column 'knn'"),
        ("table['rows'][3]['weights'] = 'somewhere'", "names public weights; it needs a reason under not_run"),
        ("table['rows'][3]['network'] = 'swav_800ep'", "is trained here; its network is that of its pretrain"),
        ("table['rows'][3]['evals'] = {'knn': 'knn'}", "no column 'knn'"),
        ("table['rows'][3]['quoted_from'] = {'knn': 'a paper'}", "no column 'knn'"),
        (
            "table['columns']['knn20'] |= {'eval': None, 'not_run': '.'}; table['rows'][3]['evals'] = {'knn20': 'a'}",
            "evals.knn20 replaces nothing",
        ),
        ("table['columns']['knn20']['relative_to'] = 'SWAV'", "relative_to names no row of the table"),
    ],
)
def test_a_wrong_table_is_refused(checkout: Path, edit: str, says: str) -> None:
    change(checkout, edit)
    with pytest.raises(UserError, match=says) as refused:
        tables.load("table7", "paper")
    assert "table7.yaml" in str(refused.value)


def test_invalid_yaml_is_refused(checkout: Path) -> None:
    (checkout / "tables" / "smoke" / "table3.yaml").write_text("table: [")
    with pytest.raises(UserError, match=r"table3.yaml is not valid YAML"):
        tables.load("table3", "smoke")


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(UserError, match="no table 'tabel3' at scale smoke: did you mean 'table3'"):
        tables.load("tabel3", "smoke")
    with pytest.raises(UserError, match="no table 'table1' at scale smoke: try SCALE=paper"):
        tables.load("table1", "smoke")
    with pytest.raises(UserError, match="no scale 'smok': did you mean 'smoke'"):
        tables.load("table3", "smok")


def test_table10_comes_after_table9(checkout: Path) -> None:
    numbered = [f"table{number}" for number in range(1, 11)]
    assert tables.names("paper") == [*numbered, "text", "figure2", "figure3", "knn_pooled", "release_notes"]


@pytest.mark.parametrize(
    ("printed", "value"),
    [(56.7, 56.7), (None, None), ("4h09", 4.15), ("3min40s", 3 + 2 / 3), ("52min10s", 52 + 1 / 6), ("fail", None)],
)
def test_parse_printed(printed: tables.Printed, value: float | None) -> None:
    assert tables.parse_printed(printed) == (value if value is None else pytest.approx(value))


def test_a_row_can_have_a_margin_of_its_own(checkout: Path) -> None:
    change(checkout, "table['rows'][3]['margins'] = {'knn20': {'points': 1.5, 'source': 'Seen in a test.'}}")
    table = tables.load("table7", "paper")
    first, second = (table.margin(table.rows[3], key) for key in table.columns)
    assert first is not None and first.points == 1.5
    assert second is table.columns["knn200"].margin


def test_headings_are_the_papers() -> None:
    assert tables.load("table10", "paper").heading == "Table 10"
    assert tables.load("figure2", "paper").heading == "Figure 2"
    assert tables.load("release_notes", "paper").heading == "Release notes"


@pytest.mark.parametrize("scale", tables.scales())
def test_headings_have_proper_names(scale: str) -> None:
    headings = {name: tables.load(name, scale).heading for name in tables.names(scale)}
    assert headings.get("knn_pooled", "kNN pooled") == "kNN pooled"
    assert all(heading[0].isupper() or heading.startswith("kNN") for heading in headings.values())


def test_measurements_of_a_network_need_no_training() -> None:
    made = {
        (row.label, column): experiment
        for row, column, experiment in tables.load("table2", "paper").reproducible_cells()
    }
    assert made["SimCLR, R50-w4", "params_millions"] == "swav_w4_400ep"
    assert ("SimCLR, R50-w4", "top1") not in made
    assert made["SwAV, R50-w4", "top1"] == "swav_w4_400ep"
