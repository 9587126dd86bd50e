"""Requesting fewer seeds does not hide a seed that failed."""

import json
from pathlib import Path

from reproduce.harness import record_baseline
from reproduce.harness.plan import build
from reproduce.harness.plan.model import Plan, Request, Run
from reproduce.harness.verdict import check
from reproduce.harness.verdict.cells import CellVerdict
from reproduce.harness.verdict.claims import check_claims
from reproduce.harness.verdict.labels import ClaimStatus, Verdict
from tests.unit.harness.verdicts import Finish


def plan_of(table: str, *seeds: int) -> Plan:
    return build.build_plan(Request((table,), "paper", seeds))


def fail(run: Run, status: str = "collapsed") -> None:
    run.failure.parent.mkdir(parents=True, exist_ok=True)
    run.failure.write_text(json.dumps({"status": status, "message": "loss stuck at ln K."}))


def cell(plan: Plan, label: str) -> CellVerdict:
    return next(judged for row, _, judged in check.check_tables(plan)[0].cells() if row.label == label)


def done(finish: Finish, table: str) -> tuple[Plan, Plan]:
    """All runs of seeds 0 to 2 done; the plan of these, and that of seed 0 alone."""
    all_of_them = plan_of(table, 0, 1, 2)
    for run in all_of_them.runs.values():
        finish(run, 73.9 + run.seed / 100)
    return all_of_them, plan_of(table, 0)


def test_an_unrequested_seed_that_collapsed_fails_the_cell(checkout: Path, finish: Finish) -> None:
    every, one = done(finish, "table9")
    assert cell(one, "SwAV, hard assignments").verdict == Verdict.INCONCLUSIVE  # 73.3 is printed, margin .6
    hard = next(run for run in every.runs.values() if run.name == "swav_400ep_hard" and run.seed == 2)
    hard.result.unlink()
    fail(hard)
    judged = cell(one, "SwAV, hard assignments")
    assert judged.verdict == Verdict.FAILED
    assert judged.reason == (
        "swav_400ep_hard, seed 2 collapsed: loss stuck at ln K."
        " This seed was not requested, but a failure always counts."
    )
    assert cell(one, "SwAV, soft assignments").verdict == Verdict.WITHIN
    (soft,) = [answer for answer in check_claims(one) if answer.claim.claim == "soft-assignments"]
    assert soft.status != ClaimStatus.HOLDS


def test_every_seed_that_exists_is_judged(checkout: Path, finish: Finish) -> None:
    """Five seeds ran and two are 4 points low: requesting the three others makes nothing green."""
    five = plan_of("table9", 0, 1, 2, 3, 4)
    for run in five.runs.values():
        finish(run, 73.9 + run.seed / 100 - (4 if run.seed > 2 else 0))
    three = plan_of("table9", 0, 1, 2)
    judged, honest = cell(three, "SwAV, soft assignments"), cell(five, "SwAV, soft assignments")
    assert (judged.verdict, judged.mean, judged.interval) == (honest.verdict, honest.mean, honest.interval)
    assert judged.verdict == Verdict.INCONCLUSIVE and list(judged.values) == [0, 1, 2, 3, 4]
    assert "Judged with them are seeds that were not requested: 3 (69.93), 4 (69.94)." in judged.reason
    claims = [
        [each.parts for each in check_claims(plan) if each.status != ClaimStatus.NOT_RUN] for plan in (three, five)
    ]
    assert [part.difference for each in claims[0] for part in each] == [
        part.difference for each in claims[1] for part in each
    ]


def test_recorded_numbers_are_compared_with_the_requested_seeds(checkout: Path, finish: Finish) -> None:
    """A recording leaves results of many seeds of the recorded code: they must not hide what changed since."""
    every = build.build_plan(Request(("table7",), "smoke", (0, 1, 2)))
    for run in every.runs.values():
        finish(run, 50.0 + run.seed)
    record_baseline.record(every)
    one = build.build_plan(Request(("table7",), "smoke", (0,)))
    judged = next(judged for _, _, judged in check.check_tables(one)[0].cells())
    assert dict(judged.values) == {0: 50.0}
    assert "Seeds that were not requested gave: 1 (51.00), 2 (52.00)." in judged.reason


def test_an_unrequested_seed_that_converges_counts_against_a_printed_failure(checkout: Path, finish: Finish) -> None:
    every, one = done(finish, "table10")
    for run in every.runs.values():
        if run.name == "swav_400ep_sinkhorn1" and run.seed != 2:
            run.result.unlink()
            fail(run)
    assert cell(one, "SwAV, 1 iteration").verdict == Verdict.INCONCLUSIVE


def test_other_runs_and_other_configs_are_not_other_seeds(checkout: Path, finish: Finish) -> None:
    one = plan_of("table9", 0)
    for name in ("another-s3-0123456789", "swav_400ep_hard-s1-nothing", "swav_400ep_hard-s0-0123456789"):
        (Path("results/paper") / name).mkdir(parents=True)
        (Path("results/paper") / name / "failure.json").write_text("{}")
    assert build.plan_for_other_seeds(one) is None
    old = Path("results/paper/swav_400ep_hard-s1-0123456789")  # a config that is no more
    old.mkdir()
    (old / "failure.json").write_text("{}")
    beyond = build.plan_for_other_seeds(one)
    assert beyond is not None and beyond.request.seeds == (1,)
    for run in one.runs.values():
        finish(run, 73.9)
    assert cell(one, "SwAV, hard assignments").verdict == Verdict.WITHIN
