"""Every table under `tables/` loads, names what exists, and prints what a second transcription of the paper prints."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.networks.architectures import ARCHITECTURES
from reproduce.config.compose import compose, group_options
from reproduce.harness.spec import canaries, tables

GOLDEN: dict[str, Any] = yaml.safe_load((Path(__file__).parents[1] / "golden" / "paper_tables.yaml").read_text())
EVERY = [(scale, name) for scale in tables.scales() for name in tables.names(scale)]
PAPER = tables.names("paper")
Key = tuple[str, str, str]
Cells = dict[Key, Any]

ROWS_OF_ABLATIONS: dict[str, dict[Any, str]] = {
    "table8": dict.fromkeys([300, 1000, 3000, 10000, 30000, 100000], "prototypes"),
    "table9": {"learned": "prototypes", "fixed": "prototypes", "soft": "assignments", "hard": "assignments"},
    "table10": {1: "iteration", 3: "iterations", 10: "iterations", 30: "iterations"},
}
METHODS = {"swav": "SwAV", "deepcluster_v2": "DeepCluster-v2", "sela_v2": "SeLa-v2"}


def of_tables() -> Iterator[tuple[Key, Any]]:
    """Tables 1 to 7, and pooled kNN: a row a method, told apart by its crops or its architecture."""
    for name in (*(f"table{number}" for number in range(1, 8)), "knn_pooled"):
        for row in GOLDEN[name]["rows"]:
            setting = row.get("crops") or row.get("arch")
            label = f"{row['method']}, {setting}" if setting else row["method"]
            for column in GOLDEN[name]["columns"]:
                yield (name, label, column), row[column]


def of_ablations() -> Iterator[tuple[Key, Any]]:
    """Tables 8 to 10: one number a row."""
    for name, words in ROWS_OF_ABLATIONS.items():
        for key, printed in GOLDEN[name]["rows"].items():
            yield (name, f"SwAV, {key} {words[key]}", "top1"), printed


def of_release_notes() -> Iterator[tuple[Key, Any]]:
    """Released models, and minutes per epoch."""
    notes = GOLDEN["release_notes"]
    for method, name in METHODS.items():
        for row in notes[method]:
            label = f"{name}, {row['epochs']} epochs, batch {row['batch']}, {row['crops']}"
            yield ("release_notes", label, "top1"), row["top1"]
            yield ("release_notes", label, "minutes_per_epoch"), None
    for row in notes["minutes_per_epoch"]:
        label = f"{METHODS[row['method']]}, batch {row['batch']}, {row['crops']}"
        yield ("release_notes", label, "minutes_per_epoch"), row["time"]
        yield ("release_notes", label, "top1"), None


def of_text() -> Iterator[tuple[Key, Any]]:
    """The running text: a number each."""
    text = GOLDEN["text"]
    best, short, simclr = "SwAV, 800 epochs, 2x224+6x96", "SwAV, 100 epochs, 2x224+6x96", "SimCLR, 1000 epochs"
    yield ("text", best, "top1"), text["A.3_linear_imagenet_top1"]["swav_800ep_2x224_6x96"]
    yield ("text", short, "hours"), text["A.1_hours_100ep_64xV100_best_model"]
    yield ("text", simclr, "hours"), text["B.1_simclr_1000ep_hours_64xV100"]
    yield ("text", short, "top1"), None
    yield ("text", simclr, "top1"), None
    yield ("text", best, "hours"), None


def of_figures() -> Iterator[tuple[Key, Any]]:
    """Figure 2: release notes against the hours of Table 1. Figure 3 has no numbers."""
    per_100_epochs = tables.parse_printed(GOLDEN["table1"]["rows"][-1]["time_100ep"])
    assert per_100_epochs == 6.25
    for row in sorted(GOLDEN["release_notes"]["swav"], key=lambda row: row["epochs"]):  # as the caption lists them
        if (row["batch"], row["crops"]) == (4096, "2x224+6x96"):
            label = f"SwAV, {row['epochs']} epochs"
            yield ("figure2", label, "top1"), row["top1"]
            yield ("figure2", label, "hours"), per_100_epochs * row["epochs"] / 100
    yield ("figure2", "SimCLR, 1000 epochs", "hours"), GOLDEN["text"]["B.1_simclr_1000ep_hours_64xV100"]
    yield ("figure2", "SimCLR, 1000 epochs", "top1"), None


SECOND: Cells = {
    key: printed for part in (of_tables, of_ablations, of_release_notes, of_text, of_figures) for key, printed in part()
}
OURS: Cells = {
    (name, row.label, column): printed
    for name in PAPER
    for row in tables.load(name, "paper").rows
    for column, printed in row.cells.items()
}


@pytest.mark.parametrize(("scale", "name"), EVERY)
def test_a_table_names_what_exists(scale: str, name: str) -> None:
    table = tables.load(name, scale)
    named = {name for row in table.rows for name in (row.pretrain, row.network) if name}
    assert named <= set(group_options("experiment"))
    assert {row.architecture for row in table.rows} - {None} <= ARCHITECTURES.keys()
    evaluations = {table.eval_of(row, key) for row in table.rows for key in table.columns}
    assert evaluations - {None} <= set(group_options("eval"))
    measurements = {column.measurement for column in table.columns.values() if column.measurement}
    assert measurements <= set(group_options("measurement"))


def test_make_lite_makes_every_table_of_its_scale() -> None:
    listed = re.search(r"^LITE_TABLES := (.+)$", (tables.TABLES_DIR.parent / "Makefile").read_text(), re.MULTILINE)
    assert listed and sorted(listed[1].split()) == sorted(tables.names("lite"))


@pytest.mark.parametrize(("scale", "name"), EVERY)
def test_margins_have_a_source(scale: str, name: str) -> None:
    table = tables.load(name, scale)
    for margin in (table.margin(row, key) for row in table.rows for key in table.columns):
        assert margin is None or (margin.points > 0 and len(margin.source) > 10)


@pytest.mark.parametrize(("scale", "name"), EVERY)
def test_rows_not_run_have_a_reason(scale: str, name: str) -> None:
    table = tables.load(name, scale)
    reasons = [row.not_run or row.from_other_paper or row.unavailable for row in table.rows if not row.pretrain]
    reasons += [column.not_run for column in table.columns.values() if not (column.eval or column.measurement)]
    assert all(reason.endswith(".") for reason in reasons)


def test_tables_and_cells_match_the_second_transcription() -> None:
    assert {"source", "independent_reproductions", *PAPER} == set(GOLDEN)
    assert OURS.keys() == SECOND.keys()


@pytest.mark.parametrize("key", sorted(SECOND))
def test_cell_value_matches_the_paper(key: Key) -> None:
    printed = OURS[key]
    assert (printed, type(printed) is str) == (SECOND[key], type(SECOND[key]) is str)


@pytest.mark.parametrize("name", PAPER)
def test_decimals_match_the_paper(name: str) -> None:
    for column, about in tables.load(name, "paper").columns.items():
        numbers = [printed for (of, _, key), printed in SECOND.items() if (of, key) == (name, column)]
        shown = {f"{printed:g}" if name == "figure2" else str(printed) for printed in numbers if printed is not None}
        times = {text for text in shown if re.fullmatch(r"\d+(h\d\d|min\d\ds)", text)}
        assert times in (set(), shown)
        if times:
            assert about.decimals == 2, column  # tell one sixtieth from the next
        else:
            digits = [len(text.partition(".")[2]) for text in shown - {"fail"}]
            assert about.decimals == max(digits), column


def test_every_column_is_of_the_evaluation_and_metric_that_the_paper_names() -> None:
    """A second transcription: two columns may have the same metric, and the wrong one's number looks right."""
    detection = {column: ("voc_detection", column) for column in ("ap", "ap50", "ap75")}
    imagenet = ("linear_imagenet", "top1_best")
    expected: dict[str, dict[str, tuple[str, str]]] = {
        "table1": {"time_100ep": ("cost", "hours"), "peak_memory_gb": ("cost", "peak_memory_gb")},
        "table2": {"params_millions": ("parameters", "params_millions"), "top1": imagenet},
        "table3": {
            "places205": ("linear_places205", "top1"),
            "voc07": ("voc07_svm", "map"),
            "inat18": ("linear_inat18", "top1"),
            "voc0712_ap50": ("voc_detection", "ap50"),
            "coco_ap": ("coco_detr", "ap"),
        },
        "table4": detection,
        "table5": {column: ("coco_detr", column) for column in ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l")},
        "table6": {
            f"{metric}_{images}": (f"lowshot_{images}", metric) for images in (13, 128) for metric in ("top1", "top5")
        },
        "table7": {column: ("knn_head", column) for column in ("knn20", "knn200")},
        "knn_pooled": {"knn20": ("knn", "knn20")},
        **{name: {"top1": imagenet} for name in ("table8", "table9", "table10")},
    }
    for name, columns in expected.items():
        found = tables.load(name, "paper").columns
        assert {key: (each.eval or each.measurement, each.metric) for key, each in found.items()} == columns, name


@pytest.mark.parametrize("name", PAPER)
def test_row_order_matches_the_paper(name: str) -> None:
    table = tables.load(name, "paper")
    assert table.expected == "printed"
    if "columns" in GOLDEN[name]:
        assert list(table.columns) == GOLDEN[name]["columns"]
    order = dict.fromkeys(label for of, label, _ in SECOND if of == name)
    assert (name == "figure3") == (not order)  # curves, without a number
    assert not order or [row.label for row in table.rows] == list(order)


@pytest.mark.parametrize("name", [f"table{number}" for number in range(1, 8)])
def test_daggers_match_the_paper(name: str) -> None:
    for row, second in zip(tables.load(name, "paper").rows, GOLDEN[name]["rows"], strict=True):
        assert row.rerun_by_authors == second.get("rerun_by_authors", [])


@pytest.mark.parametrize("name", PAPER)
def test_errata_match_the_second_transcription(name: str) -> None:
    assert [" ".join(text.split()) for text in tables.load(name, "paper").errata] == GOLDEN[name].get("errata", [])


def test_the_misprint_of_table_2_is_corrected() -> None:
    (swav,) = [row for row in tables.load("table2", "paper").rows if row.errata]
    assert (swav.label, swav.cells["params_millions"]) == ("SwAV, R50-w2", 188)
    assert swav.errata["params_millions"].value == 93.9


@pytest.mark.parametrize(
    ("name", "label", "column", "of"),
    [
        ("release_notes", "SwAV, 800 epochs, batch 4096, 2x224+6x96", "top1", "800ep"),
        ("release_notes", "SwAV, 400 epochs, batch 4096, 2x224", "top1", "2x224"),
        ("release_notes", "DeepCluster-v2, 400 epochs, batch 4096, 2x224", "top1", "2x224"),
        ("release_notes", "SwAV, 400 epochs, batch 256, 2x224+6x96", "top1", "default"),
        ("text", "SwAV, 800 epochs, 2x224+6x96", "top1", "800ep"),
        ("figure2", "SwAV, 800 epochs", "top1", "800ep"),
        ("figure2", "SwAV, 100 epochs", "top1", "default"),
        ("table2", "SwAV, R50-w4", "top1", "w4"),
        ("table2", "SwAV, R50-w2", "top1", "default"),
        ("table8", "SwAV, 300 prototypes", "top1", "default"),
        ("table9", "SwAV, hard assignments", "top1", "default"),
        ("table10", "SwAV, 30 iterations", "top1", "default"),
    ],
)
def test_margins_match_the_starting_margins(name: str, label: str, column: str, of: str) -> None:
    starting = GOLDEN["independent_reproductions"]["starting_margins_in_points"]["pretrain_and_linear"]
    table = tables.load(name, "paper")
    (row,) = [row for row in table.rows if row.label == label]
    margin = table.margin(row, column)
    assert margin is not None and margin.points == starting[of]


def test_voc_detection_averages_five_runs() -> None:
    columns = {**tables.load("table4", "paper").columns, "t3": tables.load("table3", "paper").columns["voc0712_ap50"]}
    assert {column.num_runs for column in columns.values()} == {5}


@pytest.mark.parametrize("name", PAPER)
def test_linear_imagenet_uses_the_best_epoch(name: str) -> None:
    """The released code reports the best epoch; both are in result.json."""
    for column in tables.load(name, "paper").columns.values():
        if column.eval == "linear_imagenet":
            assert column.metric == "top1_best" and "best epoch" in column.note


DETECTORS = {
    "Supervised": ("voc_detection_supervised", "MoCo's paper (He et al. 2020), from Caffe-style weights of MSRA"),
    "Random": ("voc_detection_moco", "A paper that we could not identify"),
    "NPID++": ("voc_detection_pirl", "PIRL's paper (Misra and van der Maaten 2020): learning rate .002"),
    "MoCo": ("voc_detection_moco", "MoCo's paper (He et al. 2020): learning rate .02"),
    "MoCov1": ("voc_detection_moco", "MoCo's paper (He et al. 2020): learning rate .02"),
    "PIRL": ("voc_detection_pirl", "PIRL's paper (Misra and van der Maaten 2020): learning rate .002"),
    "BoWNet": ("voc_detection_bownet", "BoWNet's paper (Gidaris et al. 2020); ours follows its authors' next code"),
    "MoCov2": ("voc_detection_moco", "MoCo v2's paper (Chen et al. 2020), by MoCo's protocol: learning rate .02"),
    "SwAV": ("voc_detection", None),
}
"""The protocol of each row, and from whose paper its numbers are. SwAV's own are the only ones that B.4 describes."""


@cache
def base_lr(protocol: str) -> float:
    cfg = compose("evaluate", [f"eval={protocol}", "checkpoint=x", "scale=paper"])
    return float(cfg.protocol.detectron2.SOLVER.BASE_LR)


def test_only_swavs_detector_has_a_learning_rate_of_a_tenth() -> None:
    assert {method for method, (protocol, _) in DETECTORS.items() if base_lr(protocol) == 0.1} == {"SwAV"}


@pytest.mark.parametrize("name", ["table3", "table4"])
def test_every_number_of_a_voc_detector_has_its_papers_protocol_and_says_whose_it_is(name: str) -> None:
    table = tables.load(name, "paper")
    columns = [key for key, column in table.columns.items() if column.eval == "voc_detection"]
    numbers = [(row, key) for row in table.rows for key in columns if table.has_cell(row, key)]
    assert {row.method for row, _ in numbers} < DETECTORS.keys()
    for row, key in numbers:
        protocol, source = DETECTORS[row.method]
        assert table.eval_of(row, key) == protocol
        quoted = row.quoted_from.get(key)
        assert (quoted is None) == (source is None)
        assert source is None or (quoted is not None and quoted.startswith(source))


def test_margins_of_linear_imagenet_quote_the_same_reproductions() -> None:
    """The largest distance of those that it names: 70.1 printed for two crops, 69.53 reproduced."""
    others = GOLDEN["independent_reproductions"]["second_implementation_same_authors_group"]
    runs = ("swav_400ep", "swav_400ep_bs256", "swav_400ep_2x224", "swav_w2")  # w4's learning rate was another
    distances = sorted(abs(theirs - printed) for theirs, printed in map(others.get, runs))
    expected = (f"{distances[0]:.1f}", f"{distances[-1]:.1f}")
    quoted = {
        (name, column): found.groups()
        for name in PAPER
        for column, about in tables.load(name, "paper").columns.items()
        if about.margin
        and (found := re.search(r"400-epoch pretrainings landed (\S+) to (\S+) points", about.margin.source))
    }
    assert {name for name, _ in quoted} >= {"table2", "table8", "table9", "table10", "release_notes"}
    assert set(quoted.values()) == {expected}


def test_amdims_row_links_its_authors_weights() -> None:
    (amdim,) = [row for row in tables.load("table2", "paper").rows if row.method == "AMDIM"]
    assert (amdim.weights, amdim.from_other_paper) == ("github.com/Philip-Bachman/amdim-public", "")


@pytest.mark.parametrize("scale", tables.scales())
def test_table_7_takes_the_heads_output_and_the_other_table_pooled_features(scale: str) -> None:
    """For all of its numbers, at every scale."""
    for name, evaluation in (("table7", "knn_head"), ("knn_pooled", "knn")):
        if name in tables.names(scale):
            assert {column.eval for column in tables.load(name, scale).columns.values()} == {evaluation}


def test_the_canaries_decide_between_the_heads_output_and_pooled_features() -> None:
    found = {(each.table, each.column) for each in canaries.load().canaries}
    assert found >= {("table7", "knn20"), ("table7", "knn200"), ("knn_pooled", "knn20")}


def test_pooled_neighbors_say_whose_number_they_are() -> None:
    """It is not the paper's, which prints 59.2."""
    caption = tables.load("knn_pooled", "paper").caption
    assert "Not the paper's number" in caption
    assert "Caron et al. 2021" in caption and "table 2" in caption and "65.7" in caption
