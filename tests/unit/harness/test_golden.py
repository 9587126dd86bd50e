"""First steps against the recorded ones, and the tolerances that are measured for them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from reproduce.errors import UserError
from reproduce.files import NOT_FINITE
from reproduce.harness.preflight.tolerances import measured
from reproduce.harness.spec import golden, tables
from reproduce.harness.spec.golden import Difference, Golden, Values, compare

MULTIPLE = 30
"""What docs/preflight.md says: a tolerance is thirty times a spread."""
FP32 = 2.0**-23
"""The distance from 1 to the next number."""


def recorded(values: Mapping[str, Sequence[float]], tolerance: float | None = 0.01) -> Golden:
    """First steps with one tolerance for all numbers."""
    series = {name: list(numbers) for name, numbers in values.items()}
    return Golden(["a"], [], series, {name: [tolerance] * len(numbers) for name, numbers in series.items()})


def test_equal_numbers_are_equal() -> None:
    compared = compare({"loss": [4.0, 3.0]}, recorded({"loss": [4.0, 3.0]}))
    assert (compared.differences, compared.worst, compared.num_compared) == ([], ("loss", 0, 0.0, 0.0), 2)


def test_the_number_closest_to_its_tolerance_is_named() -> None:
    found = {"loss": [4.0, 2.996], "norm of trunk": [5.002, 5.0]}
    compared = compare(found, recorded({"loss": [4, 3], "norm of trunk": [5, 5]}))
    assert compared.differences == []
    assert compared.worst and compared.worst[:2] == ("loss", 1)
    assert compared.worst[2:] == pytest.approx((0.004 / 3, 0.4))


def test_a_number_at_its_tolerance_is_inside_and_one_beyond_is_not() -> None:
    assert compare({"loss": [4.5]}, recorded({"loss": [4.0]}, 0.5)).differences == []
    beyond = Difference("loss", None, 4.5625, 4.0, 0.5)
    assert compare({"loss": [4.5625]}, recorded({"loss": [4.0]}, 0.5)).differences == [beyond]
    assert str(beyond).startswith("loss is 4.5625, not 4 (tolerance 0.5); usually the loss: temperature, ")


def test_differences_are_sorted_by_step_with_causes_before_effects() -> None:
    """The initial weights come first. A result's metric comes last, below the differences that explain it."""
    steps = ("movement of trunk", "gradient norm", "loss_rpn_cls", "pixels of view 1", "indices")
    expected = {name: [1.0, 1.0] for name in steps}
    expected |= {name: [1.0] for name in ("metric top1", "state of queue", "initial norm of trunk")}
    found = {name: [2.0] * len(series) for name, series in expected.items()} | {"indices": [1.0, 2.0]}
    differences = compare(found, recorded(expected)).differences
    assert [(each.quantity, each.step) for each in differences] == [
        ("initial norm of trunk", None),
        *(("pixels of view 1", 0), ("loss_rpn_cls", 0), ("gradient norm", 0), ("movement of trunk", 0)),
        *(("indices", 1), ("pixels of view 1", 1), ("loss_rpn_cls", 1), ("gradient norm", 1), ("movement of trunk", 1)),
        *(("state of queue", None), ("metric top1", None)),
    ]


@pytest.mark.parametrize(("found", "number"), [([1.0], 1), ([1.0, 2.0, 3.0], 3), ([], 0)])
def test_a_series_of_another_length_is_one_difference(found: list[float], number: int) -> None:
    (difference,) = compare({"indices": found}, recorded({"indices": [1.0, 2.0]})).differences
    assert difference == Difference("number of values of indices", None, number, 2, 0)


def test_a_quantity_that_is_missing_or_new_is_a_difference() -> None:
    differences = compare({"loss": [1.0]}, recorded({"indices": [1.0]})).differences
    assert [(each.quantity, each.found, each.expected) for each in differences] == [
        ("number of values of indices", 0, 1),
        ("number of values of loss", 1, 0),
    ]
    assert compare({"loss": []}, recorded({})).num_compared == 0


def test_a_number_without_tolerance_is_not_compared() -> None:
    compared = compare({"loss": [1.0, 9.0]}, Golden([], [], {"loss": [1.0, 2.0]}, {"loss": [0.1, None]}))
    assert (compared.differences, compared.num_compared) == ([], 1)


@pytest.mark.parametrize("value", [math.inf, NOT_FINITE, math.nan])
def test_a_number_that_is_not_finite_is_a_difference(value: float) -> None:
    (difference,) = compare({"gradient norm": [2.0, value]}, recorded({"gradient norm": [2.0, 2.0]})).differences
    assert "gradient norm at step 1 is infinite, not 2 (tolerance 0.01)" in str(difference)


def test_an_overflow_where_one_was_recorded_is_equal() -> None:
    """In fp16 the loss scale overflows in the first steps of a correct training."""
    values, tolerances = in_fp32([{"gradient norm": [NOT_FINITE, 2.0]}] * 3)
    assert compare(values, Golden([], [], values, tolerances)).differences == []
    (difference,) = compare({"gradient norm": [3.0, 2.0]}, Golden([], [], values, tolerances)).differences
    assert "gradient norm at step 0 is 3, not infinite" in str(difference)


def test_damaged_and_absent_files_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "TABLES_DIR", tmp_path)
    with pytest.raises(UserError, match=r"no first steps are recorded at scale smoke \(recorded: none\)"):
        golden.load("smoke")
    (tmp_path / "golden").mkdir()
    for content in ("{", "[]", '{"recorded": {}}', '{"recorded": {}, "rehearsals": {"a": {"steps": {}}}}'):
        golden.path("smoke").write_text(content)
        with pytest.raises(UserError, match=r"smoke.json is damaged \(.*; restore it from git, or record it again"):
            golden.load("smoke")


def test_every_recorded_file_can_be_read() -> None:
    for file in (tables.TABLES_DIR / "golden").glob("*.json"):
        for name, each in golden.load(file.stem).rehearsals.items():
            assert each.values.keys() == each.tolerances.keys(), name
            assert all(len(each.values[key]) == len(each.tolerances[key]) for key in each.values), name


def in_fp32(runs: Sequence[Values]) -> tuple[dict[str, list[float]], dict[str, list[float | None]]]:
    """Numbers and tolerances of one rehearsal that ran under several settings."""
    return measured({"a": runs}, {"a": "fp32"})["a"]


def test_a_tolerance_is_a_multiple_of_the_spread_so_far() -> None:
    runs = [{"loss": [4.0, 2.0, 2.0]}, {"loss": [4.001, 2.004, 2.0]}, {"loss": [3.998, 2.0, 2.0]}]
    values, tolerances = in_fp32(runs)
    assert values == {"loss": [4.0, 2.0, 2.0]}
    assert tolerances == {"loss": [pytest.approx(0.002 * MULTIPLE), *[pytest.approx(0.004 * MULTIPLE)] * 2]}


def test_settings_that_agree_by_chance_get_the_usual_spread_of_the_kind() -> None:
    """Parts of a network are one kind; another quantity, here the loss, keeps fp32's resolution."""
    spread = {f"norm of part {number}": [100.0] for number in range(5)}
    runs = [{**spread, "loss": [4.0]}, {**{name: [100.1] for name in spread}, "norm of part 0": [100.0], "loss": [4.0]}]
    tolerances = in_fp32([runs[0], runs[1], runs[0]])[1]
    assert tolerances["norm of part 0"] == [pytest.approx(0.1 * MULTIPLE)]
    assert tolerances["loss"] == [pytest.approx(MULTIPLE * FP32 * 4.0, rel=0.05)]


@pytest.mark.parametrize(
    ("precision", "usual"), [("fp64", 0.006), ("fp32", 0.0072), ("bf16", 0.0072), ("fp16", 0.0072)]
)
def test_the_usual_spread_is_that_of_three_quarters_of_a_kind_in_fp64_and_of_nine_tenths_below(
    precision: str, usual: float
) -> None:
    """Of spreads from 0 to .008 in equal steps; the first quantity, which has none, gets the usual one."""
    still = {f"norm of part {number}": [100.0] for number in range(5)}
    moved = {f"norm of part {number}": [100 * (1 + 0.002 * number)] for number in range(5)}
    (_, tolerances) = measured({"a": [still, moved, still]}, {"a": precision})["a"]
    assert tolerances["norm of part 0"] == [pytest.approx(30 * usual * 100, rel=0.05)]


def test_a_number_that_rounding_moves_by_too_much_has_no_tolerance_from_there_on() -> None:
    just, too_much = 0.99 * 0.3 / MULTIPLE, 1.01 * 0.3 / MULTIPLE  # tolerances of .297 and .303 of the number
    runs = [{"loss": [1.0] * 3}, {"loss": [1.0 + just, 1.0 + too_much, 1.0]}, {"loss": [1.0] * 3}]
    assert in_fp32(runs)[1] == {"loss": [pytest.approx(just * MULTIPLE, rel=0.05), None, None]}


def test_a_projection_is_compared_with_the_largest_of_its_series() -> None:
    runs = [{"projection of view 1": [8.0, 1e-9]}] * 2
    (tolerance, at_zero) = in_fp32(runs)[1]["projection of view 1"]
    assert tolerance == at_zero == pytest.approx(MULTIPLE * FP32 * 8, rel=0.05)


def test_a_movement_is_compared_with_the_resolution_of_what_moves() -> None:
    runs = [{"movement of trunk": [0.0], "norm of trunk": [50.0]}] * 2
    (tolerance,) = in_fp32(runs)[1]["movement of trunk"]
    assert tolerance == pytest.approx(MULTIPLE * FP32**2 * 50, rel=0.05)


@pytest.mark.parametrize("quantity", ["indices", "learning rate 0", "mean learning rate", "number of steps"])
def test_exact_quantities_are_compared_to_the_digits_that_are_stored(quantity: str) -> None:
    values, tolerances = in_fp32([{quantity: [123456.78901234, 0.0]}] * 3)
    assert values == {quantity: [123456.79, 0.0]}
    assert tolerances == {quantity: [pytest.approx(1e-7 * 123456.789, rel=0.05), 0.0]}
    as_recorded = Golden([], [], values, tolerances)
    assert compare({quantity: [123456.78901234, 0.0]}, as_recorded).differences == []
    assert len(compare({quantity: [123457.78901234, 0.1]}, as_recorded).differences) == 2
