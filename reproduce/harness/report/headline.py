"""The headline of the terminal, the summary and the page: what a check with recorded numbers proved, in a sentence."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reproduce.harness.verdict.labels import Verdict


def headline(tables: Sequence[Mapping[str, Any]], checkpoints: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the `proofs` in one line; "" without any."""
    return "; ".join(proofs(tables, checkpoints))


def proofs(tables: Sequence[Mapping[str, Any]], checkpoints: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """Return what was proved about the tables that are compared with recorded numbers; [] without such tables.

    Tables and checkpoints are given as data. What was not compared is named and never counted as equal.
    """
    compared = [table for table in tables if table["expected"] == "recorded"]
    if not compared:
        return []
    parts = [_first_steps(compared), *_numbers(_distinct_cells(compared), "number", "numbers")]
    means = [(each["verdict"], each["interval"], each["noticeable_fall"]) for each in checkpoints]
    parts += _numbers(means, "checkpoint mean", "checkpoint means") if means else []
    return [part for part in parts if part]


def _first_steps(tables: Sequence[Mapping[str, Any]]) -> str:
    runs = {run["run_id"]: run for table in tables for run in table["runs"] if run.get("first_steps")}
    labels: dict[str, list[str]] = {}
    for run in runs.values():
        labels.setdefault(run["first_steps"], []).append(run["label"])
    if not runs:
        return ""
    if labels.keys() == {"not recorded"}:
        return f"no first steps are recorded of {len(runs)} runs"
    equal = f"{len(labels.get('equal', []))} of {len(runs)} runs take the recorded first steps"
    different = labels.get("different", [])
    others = [f"different: {len(different)} ({'; '.join(different)})"] if different else []
    if of_gpu := labels.get("input equal"):
        others.append(f"on a GPU, where only input and rates are compared: {len(of_gpu)}")
    others += [f"not recorded: {len(labels['not recorded'])}"] if "not recorded" in labels else []
    others += [f"results without: {len(labels['not kept'])}"] if "not kept" in labels else []
    return ", ".join([equal, *others])


Compared = tuple[str, Sequence[float] | None, float | None]
"""A verdict, the interval of unchanged code (None if nothing was compared), and the noticeable fall."""


def _distinct_cells(tables: Sequence[Mapping[str, Any]]) -> list[Compared]:
    """Return the cells that runs of ours should make; a number that two tables show counts once."""
    found = {}
    for table in tables:
        for key, cell in _needed_cells(table):
            number = (*cell["run_ids"], table["columns"][key]["metric"])
            found[number] = (cell["verdict"], cell["interval"], cell.get("noticeable_fall"))
    return list(found.values())


def _needed_cells(table: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for row in table["rows"]:
        for key, cell in row["cells"].items():
            if cell and cell["needed"]:
                yield key, cell


def _numbers(given: Sequence[Compared], one: str, many: str) -> Iterator[str]:
    """Yield how many numbers lie inside their intervals, which falls they would notice, and what was not compared."""
    judged = [(verdict, fall) for verdict, interval, fall in given if interval]
    if judged:
        others = Counter(verdict for verdict, _ in judged if verdict != Verdict.WITHIN)
        inside = f"{len(judged) - others.total()} of {len(judged)} {one if len(judged) == 1 else many} inside"
        inside += f" ({_counts(others)})" if others else ""
        yield f"{inside}, {_notice([fall for _, fall in judged])}"
    if rest := Counter(verdict for verdict, interval, _ in given if not interval):
        yield f"{rest.total()} {one if rest.total() == 1 else many} not compared ({_counts(rest)})"


def _counts(verdicts: Counter[str]) -> str:
    return ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in Verdict if verdicts[verdict])


def _notice(falls: Sequence[float | None]) -> str:
    known = [f"{fall:.1f}" for fall in sorted(fall for fall in falls if fall is not None)]
    if not known:
        return "would notice no fall"
    reach = known[0] if known[0] == known[-1] else f"{known[0]} to {known[-1]}"
    blind = len(falls) - len(known)
    return f"would notice falls of {reach} points" + (f" ({blind} would notice none)" if blind else "")
