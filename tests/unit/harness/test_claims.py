"""The paper's conclusions, judged on differences of what runs gave."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from scipy import stats

from reproduce.__main__ import main
from reproduce.errors import UserError
from reproduce.harness import record_baseline, revision
from reproduce.harness.plan import build
from reproduce.harness.plan.model import Plan, Request
from reproduce.harness.report.files import Changes, write_verdicts
from reproduce.harness.report.page import write_page
from reproduce.harness.report.tracking import log_changes
from reproduce.harness.spec import baseline, claims
from reproduce.harness.verdict import check, strict
from reproduce.harness.verdict.claims import (
    WORST_FIRST,
    ClaimVerdict,
    PartVerdict,
    check_claims,
    check_recorded_claims,
    half_fall_percent,
)
from reproduce.harness.verdict.labels import CLAIM_SYMBOLS, ClaimStatus, Tendency
from tests.unit.harness.verdicts import Finish

BASE, FIXED, HARD, ONE = (
    *("swav_400ep_2x160_4x96", "swav_400ep_fixed_prototypes", "swav_400ep_hard", "swav_400ep_sinkhorn1"),
)
PROTOTYPES = [BASE, *(f"swav_400ep_prototypes{number}" for number in (10000, 30000, 100000))]


def done(finish: Finish, values: dict[str, float], *seeds: int, table: str = "claims", step: float = 0.1) -> Plan:
    """Return the plan of all claims, with results of some experiments: their value, `step` more for each seed."""
    plan = build.build_plan(Request((table,), "paper", seeds or (0,)))
    for run in plan.runs.values():
        if (run.parent_name or run.name) in values:
            finish(run, values[run.parent_name or run.name] + step * run.seed)
    return plan


def collapse(plan: Plan, experiment: str, status: str = "collapsed") -> None:
    for run in plan.runs.values():
        if run.name == experiment:
            run.result.unlink(missing_ok=True)
            run.failure.parent.mkdir(parents=True, exist_ok=True)
            run.failure.write_text(json.dumps({"status": status, "exit_status": 1, "message": "stuck at ln K"}))


def answer(plan: Plan, name: str) -> ClaimVerdict:
    (found,) = [each for each in check_claims(plan) if each.claim.claim == name]
    return found


@pytest.mark.parametrize(
    ("fixed", "tendency", "says"),
    [
        (73.0, "right", "One seed per side: +0.9 points, which points the right way; "),
        (73.9, "", "One seed per side: +0.0 points, no more than its known error; "),
        (73.6, "", "One seed per side: +0.3 points, no more than its known error; "),
        (75.0, "wrong", "One seed per side: -1.1 points, which points the wrong way; "),
    ],
)
def test_one_seed_decides_nothing_and_points_one_way(
    checkout: Path, finish: Finish, fixed: float, tendency: str, says: str
) -> None:
    """The test sets' known error decides which way the difference points; it says nothing about seeds."""
    found = answer(done(finish, {BASE: 73.9, FIXED: fixed}), "learned-prototypes")
    (part,) = found.parts
    assert (found.status, found.tendency) == (ClaimStatus.INCONCLUSIVE, tendency)
    assert part.difference == pytest.approx(73.9 - fixed)
    error = 100 * (0.739 * 0.261 / 50_000 + fixed / 100 * (1 - fixed / 100) / 50_000) ** 0.5
    assert part.interval is not None
    assert part.interval[1] - part.interval[0] == pytest.approx(2 * stats.norm.ppf(0.95) * error)
    unknown = "nothing is known about the spread over seeds, so this decides nothing; SEEDS=3 can decide it."
    assert part.reason == says + unknown
    assert (part.printed, part.p_value, part.effect_size) == (0.8, None, None)


def test_one_seed_makes_no_check_fail_unless_strict(
    checkout: Path, finish: Finish, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = done(finish, {BASE: 73.4, FIXED: 74.0, HARD: 73.3}, table="table9")
    answers = check_claims(plan)
    assert check.exit_status([], answers) == check.AGREES
    assert "claim learned-prototypes: inconclusive" in strict.open_issues(plan, [], answers)
    main(["check", "table9", "--scale", "paper"])
    out = capsys.readouterr().out
    assert "◆ inconclusive, points the wrong way Learned prototypes are better than fixed random ones." in out
    assert "| ◆ inconclusive, points the wrong way |" in Path("reports/paper/claims.md").read_text()
    assert "| ◆ inconclusive, points the wrong way |" in Path("reports/paper/summary.md").read_text()
    assert main(["report", "claims", "--scale", "paper"]) == 0
    assert "points the wrong way" in Path("reports/paper/index.html").read_text()


def test_several_seeds_are_welchs_test(checkout: Path, finish: Finish) -> None:
    plan = done(finish, {BASE: 73.9, HARD: 72.3}, 0, 1, 2, table="table9")
    (part,) = answer(plan, "soft-assignments").parts
    assert part.status == ClaimStatus.HOLDS and "3 seeds per side (Welch)" in part.reason
    assert part.effect_size == pytest.approx(1.6 / 0.1 * (1 - 3 / 15))
    assert part.p_value is not None and part.p_value < 0.01


def test_a_tables_check_judges_the_claims_that_use_its_numbers(checkout: Path, finish: Finish) -> None:
    plan = done(finish, {BASE: 73.9, FIXED: 73.0, HARD: 73.2}, 0, 1, table="table9")
    found = {each.claim.claim: str(each.status) for each in check_claims(plan)}
    assert found == {
        "learned-prototypes": "holds",
        "soft-assignments": "holds",
        "three-iterations": "not run",
        "enough-prototypes": "not run",
    }
    assert set(plan.runs) == set(build.build_plan(plan.request).runs)  # judging adds no run


def test_convergence(checkout: Path, finish: Finish) -> None:
    plan = done(finish, {BASE: 73.9}, 0, 1)
    assert answer(plan, "three-iterations").status == ClaimStatus.NOT_RUN
    collapse(plan, ONE, status="failed")
    assert answer(plan, "three-iterations").incomplete
    collapse(plan, ONE)
    assert answer(plan, "three-iterations").status == ClaimStatus.HOLDS
    done(finish, {ONE: 70.0}, 0, 1)
    assert answer(plan, "three-iterations").status == ClaimStatus.CONTRADICTED
    collapse(plan, BASE)
    assert "swav_400ep_2x160_4x96, seed 0 collapsed" in answer(plan, "three-iterations").parts[0].reason
    assert answer(plan, "three-iterations").status == ClaimStatus.CONTRADICTED
    assert answer(plan, "soft-assignments").status == ClaimStatus.NOT_RUN


def test_one_seed_does_not_decide_convergence_either(checkout: Path, finish: Finish) -> None:
    """Whether a training collapses differs from seed to seed, too (README.md: one of five without small crops)."""
    plan = done(finish, {BASE: 73.9})
    collapse(plan, ONE)
    found = answer(plan, "three-iterations")
    assert (found.status, found.tendency) == (ClaimStatus.INCONCLUSIVE, "right")
    assert found.parts[0].reason.startswith(
        f"One seed per side: {ONE} collapsed, {BASE} did not, which points the right "
    )
    done(finish, {ONE: 70.0})
    found = answer(plan, "three-iterations")
    assert (found.status, found.tendency) == (ClaimStatus.INCONCLUSIVE, "wrong")
    assert found.parts[0].reason.startswith(f"One seed per side: {ONE} did not collapse, which points the wrong way; ")
    collapse(plan, BASE)
    assert answer(plan, "three-iterations").tendency == "wrong"


@pytest.mark.parametrize(
    ("others", "last", "tendency", "status"),
    [
        (73.85, 73.8, "right", "holds"),
        (
            73.8,
            73.6,
            "right",
            "inconclusive",
        ),  # the means differ by the bound: that half of all such cases pass proves nothing
        (73.8, 73.4, "", "inconclusive"),
        (73.8, 70.0, "wrong", "contradicted"),
    ],
)
def test_spread(checkout: Path, finish: Finish, others: float, last: float, tendency: str, status: str) -> None:
    """Three seeds .1 apart: Welch's 90% interval of a difference is .17 to either side."""
    values = dict(zip(PROTOTYPES, [73.9, others, others, last], strict=True))
    alone = answer(done(finish, values), "enough-prototypes")
    assert (alone.status, alone.tendency) == (ClaimStatus.INCONCLUSIVE, tendency)
    assert alone.parts[0].reason.startswith(f"One seed each. The widest difference is {73.9 - last:.2f} points, ")
    found = answer(done(finish, values, 0, 1, 2), "enough-prototypes")
    assert found.status == status
    assert found.parts[0].difference == pytest.approx(73.9 - last)
    if status == "holds":
        assert "differences of up to 0.27 are possible" in found.parts[0].reason


def test_the_widest_pair_has_an_interval_that_counts_all_pairs(checkout: Path, finish: Finish) -> None:
    """It was chosen among six. Three seeds .1 apart on each side; 50,000 test images have an error of their own."""
    values = dict(zip(PROTOTYPES, [73.9, 73.8, 73.8, 70.0], strict=True))
    (part,) = answer(done(finish, values, 0, 1, 2), "enough-prototypes").parts
    test_sets = sum(mean * (100 - mean) / 50_000 for mean in (74.0, 70.1))
    of_seeds = 0.1**2 / 3
    variance = 2 * of_seeds + test_sets
    half = stats.t.ppf(1 - 0.1 / 6 / 2, variance**2 / (2 * of_seeds**2 / 2)) * variance**0.5
    assert part.interval == pytest.approx((3.9 - half, 3.9 + half))


def test_a_claim_of_many_parts_is_all_of_them(checkout: Path, finish: Finish) -> None:
    plan = done(finish, {"swav_100ep": 70.0, "swav_200ep": 72.0, "swav_400ep": 74.0}, 0, 1, 2)
    one = build.build_plan(Request(("claims",), "paper"))
    assert answer(plan, "longer").status == ClaimStatus.NOT_RUN
    done(finish, {"swav_800ep": 76.0}, 0, 1, 2)
    assert answer(plan, "longer").status == ClaimStatus.HOLDS
    assert answer(one, "longer").status == ClaimStatus.HOLDS  # seeds 1 and 2 exist, so they count
    done(finish, {"swav_100ep": 73.0}, 0, 1, 2)
    assert answer(one, "longer").status == ClaimStatus.CONTRADICTED
    assert [str(each.status) for each in answer(plan, "longer").parts] == ["contradicted", "holds", "holds"]
    assert answer(plan, "longer").status == ClaimStatus.CONTRADICTED


def test_sooner(checkout: Path, finish: Finish) -> None:
    plan = done(finish, {BASE: 73.9, HARD: 73.3}, 0, 1)
    for run in plan.runs.values():
        if run.name in (BASE, HARD):
            at = (100 if run.name == HARD else 400) + 20 * run.seed
            lines = [json.dumps({"step": step, "loss": 4.0 if step < at else 3.0}) for step in range(1, 1001)]
            (Path(run.folder) / "metrics.jsonl").write_text("\n".join(lines))
    (part,) = answer(plan, "hard-converges-faster").parts
    assert (part.status, part.difference) == (ClaimStatus.HOLDS, 30.0)
    assert part.interval is not None and part.interval[0] < 30 < part.interval[1]
    (alone,) = answer(build.build_plan(Request(("claims",), "paper")), "hard-converges-faster").parts
    assert (alone.status, alone.tendency, alone.difference) == (ClaimStatus.INCONCLUSIVE, "right", 30.0)
    assert alone.interval is None, "an interval of no width would look like certainty"
    assert "+30.0 points, which points the right way" in alone.reason


def test_a_falling_line_is_half_way_down_in_its_middle() -> None:
    assert half_fall_percent([(step, 100.0 - step) for step in range(1, 1001)]) == pytest.approx(50, abs=1)
    assert half_fall_percent([(0, 2.0)]) == 0


def test_files_and_exit_statuses(checkout: Path, finish: Finish, capsys: pytest.CaptureFixture[str]) -> None:
    done(finish, {BASE: 73.9, FIXED: 75.0, HARD: 73.2, "swav_800ep": 76.0, "supervised": 71.0}, 0, 1, 2)
    assert main(["check", "claims", "--scale", "paper", "--seeds", "3"]) == check.INCOMPLETE
    out = capsys.readouterr().out
    assert "▼ contradicted Learned prototypes are better than fixed random ones." in out
    assert "not run: hard-converges-faster" in out
    data = json.loads(Path("reports/paper/claims.json").read_text())
    assert [claim["claim"] for claim in data["claims"]] == [claim.claim for claim in claims.load()]
    assert data["claims"][0]["status"] == "contradicted"
    cases = ElementTree.parse("reports/paper/junit.xml").getroot().findall(".//testcase")
    kinds = {case.get("name"): [kind.tag for kind in case] for case in cases}
    assert kinds["learned-prototypes"] == ["failure"] and kinds["soft-assignments"] == []
    assert kinds["longer"] == ["error"] and kinds["over-supervised"] == []
    assert main(["report", "claims", "--scale", "paper"]) == 0

    done(finish, {BASE: 73.9, FIXED: 72.5, HARD: 72.3}, 0, 1, 2, table="table9", step=0.01)
    main(["check", "table9", "--scale", "paper", "--seeds", "3"])
    text = Path("reports/paper/claims.md").read_text()
    assert "| Learned prototypes are better than fixed random ones. | C.2, Table 9 | ● holds |" in text
    assert "Longer training is better." in text  # of the check before


def test_changed_claims_are_logged_to_wandb(checkout: Path, finish: Finish, monkeypatch: pytest.MonkeyPatch) -> None:
    from reproduce.engine.runs import tracking

    sent = []
    monkeypatch.setattr(tracking, "log_table", lambda *given: sent.append(given))
    plan = done(finish, {BASE: 73.9, FIXED: 73.1, HARD: 73.2})
    answers = check_claims(plan)
    news = write_verdicts(plan, [], answers)
    assert log_changes(plan, news) is None
    ((name, scale, _, columns, rows),) = sent
    assert (name, scale) == ("claims", "paper")
    assert len(rows) == sum(len(each.parts) for each in answers)
    first = dict(zip(columns, rows[0], strict=True))
    assert (first["claim"], first["status"], first["printed"]) == ("learned-prototypes", "inconclusive", 0.8)
    assert first["low"] < first["difference"] < first["high"]

    assert write_verdicts(plan, [], check_claims(plan)) == Changes([], [])
    done(finish, {FIXED: 75.0})
    assert {each.claim.claim for each in write_verdicts(plan, [], check_claims(plan)).claims} == {"learned-prototypes"}


def test_a_contradicted_claim_disagrees(checkout: Path, finish: Finish) -> None:
    plan = done(finish, {BASE: 73.9, FIXED: 75.0, HARD: 73.3}, 0, 1, table="table9")
    answers = check_claims(plan)
    assert [str(each.status) for each in answers][:2] == ["contradicted", "holds"]
    assert check.exit_status([], answers) == check.DISAGREES


def test_recorded_numbers_judge_claims_as_the_results_did(
    checkout: Path, finish: Finish, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no run was done; what was recorded of another config counts as nothing."""
    monkeypatch.setattr(revision, "run_code_fingerprint", lambda *_: "the same")
    with pytest.raises(UserError, match="nothing is recorded at scale lite"):
        check_recorded_claims("lite")
    plan = build.build_plan(Request(("table9",), "lite", (0, 1, 2, 3, 4)))
    accuracy = {BASE: 50.0, FIXED: 30.0, HARD: 70.0}
    for run in plan.runs.values():
        finish(run, accuracy.get(run.parent_name or run.name, 30.0) + (0.3, 0.0, 0.1, 0.2, 0.4)[run.seed])
    by_results = {each.claim.claim: each.parts[0] for each in check_claims(plan)}
    record_baseline.record(plan)
    shutil.rmtree("results")

    found = {each.claim.claim: each for each in check_recorded_claims("lite")}
    assert found["learned-prototypes"].status == ClaimStatus.HOLDS
    assert found["soft-assignments"].status == ClaimStatus.CONTRADICTED
    for name in ("learned-prototypes", "soft-assignments"):
        assert found[name].parts[0].interval == by_results[name].interval is not None
        assert found[name].parts[0].effect_size == by_results[name].effect_size
    assert (
        found["three-iterations"].status == ClaimStatus.NOT_RUN
    )  # one iteration is in Table 10, which is not recorded
    assert main(["recorded-claims", "--scale", "lite"]) == 1
    out = capsys.readouterr().out
    assert "5 seeds" in out and "Learned prototypes are better than fixed random ones." in out

    recorded = baseline.path("lite").read_text()
    changed = baseline.load("lite").cells[f"{FIXED}/linear_imagenet/top1_best"].run_id
    baseline.path("lite").write_text(recorded.replace(changed, "linear_imagenet-s0-0000000000"))
    found = {each.claim.claim: each for each in check_recorded_claims("lite")}
    assert found["learned-prototypes"].status == ClaimStatus.NOT_RUN


def test_every_status_is_shown() -> None:
    assert set(CLAIM_SYMBOLS) == set(ClaimStatus) == set(WORST_FIRST)


def test_claims_are_planned_at_every_scale(checkout: Path) -> None:
    for scale in ("smoke", "paper"):
        plan = build.build_plan(Request(("claims",), scale))
        assert {run.name for run in plan.runs.values()} >= {BASE, ONE, "swav_w5_400ep", "linear_imagenet", "voc07_svm"}


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (
            "    faster_convergence: {faster: swav_400ep_hard, slower: swav_400ep_2x160_4x96}\n",
            "",
            "needs exactly one of",
        ),
        ("eval: coco_detr, metric: ap, ", "", "needs a value for 'eval'"),
        ("max_points", "max_poinds", "no key 'max_poinds' in claims\\[4\\].spread: did you mean 'max_points'"),
    ],
)
def test_a_wrong_claim_is_refused(checkout: Path, before: str, after: str, says: str) -> None:
    path = checkout / "tables" / "claims.yaml"
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(UserError, match=says):
        claims.load()


def test_nothing_checked_is_still_refused(checkout: Path) -> None:
    with pytest.raises(UserError, match="Nothing at scale paper was checked yet"):
        write_page("paper")


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        ((ClaimStatus.HOLDS, ClaimStatus.NOT_RUN, ClaimStatus.CONTRADICTED), ClaimStatus.CONTRADICTED),
        ((ClaimStatus.INCONCLUSIVE, ClaimStatus.HOLDS, ClaimStatus.NOT_RUN), ClaimStatus.NOT_RUN),
        ((ClaimStatus.HOLDS, ClaimStatus.INCONCLUSIVE), ClaimStatus.INCONCLUSIVE),
        ((ClaimStatus.HOLDS, ClaimStatus.HOLDS), ClaimStatus.HOLDS),
    ],
)
def test_a_claim_has_the_status_of_its_worst_part(parts: tuple[ClaimStatus, ...], whole: ClaimStatus) -> None:
    verdicts = tuple(PartVerdict("", status) for status in parts)
    assert ClaimVerdict(claims.load()[0], verdicts, "own training").status == whole


@pytest.mark.parametrize(
    ("parts", "whole"),
    [(("right", "right"), "right"), (("right", ""), ""), (("right", "wrong"), "wrong"), (("", ""), "")],
)
def test_an_undecided_claim_points_right_only_if_all_of_its_undecided_parts_do(
    parts: tuple[Tendency, ...], whole: Tendency
) -> None:
    verdicts = tuple(PartVerdict("", ClaimStatus.INCONCLUSIVE, tendency=each) for each in parts)
    decided = PartVerdict("", ClaimStatus.HOLDS)
    assert ClaimVerdict(claims.load()[0], (*verdicts, decided), "own training").tendency == whole


def test_doubts_about_results_reach_every_reader(
    checkout: Path, finish: Finish, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two claims have a result of uncommitted code, another has none; nothing else was requested."""
    plan = done(finish, {BASE: 73.4, FIXED: 74.0, HARD: 73.3, ONE: 50.0})
    (fixed,) = [run for run in plan.runs.values() if run.parent_name == FIXED]
    finish(fixed, 74.0, provenance={"git_commit": "c" * 40, "git_dirty": True})
    assert main(["check", "claims", "--scale", "paper"]) == check.INCOMPLETE
    doubt = "claim learned-prototypes: 1 of 4 results were made by uncommitted code"
    assert f"  note: {doubt}\n" in capsys.readouterr().out
    folder = Path("reports/paper")
    (judged,) = [each for each in json.loads((folder / "claims.json").read_text())["claims"]
                 if each["claim"] == "learned-prototypes"]  # fmt: skip
    assert "1 of 4 results were made by uncommitted code" in judged["doubts"]
    assert f"- Note: {doubt}." in (folder / "claims.md").read_text()
    assert f"- C{doubt[1:]}." in (folder / "summary.md").read_text()
    suite = ElementTree.parse(folder / "junit.xml").find("testsuite[@name='claims']")
    assert suite is not None and doubt in (suite.findtext("system-out") or "")
    assert f"C{doubt[1:]}." in write_page("paper").read_text()
    assert any("uncommitted code" in issue for issue in strict.open_issues(plan, [], check_claims(plan)))


def test_a_report_notices_that_results_of_claims_were_replaced(
    checkout: Path, finish: Finish, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = done(finish, {BASE: 73.4, FIXED: 74.0})
    main(["check", "claims", "--scale", "paper"])
    assert main(["report", "claims", "--scale", "paper"]) == 0
    assert "was checked before" not in capsys.readouterr().out
    finish(next(run for run in plan.runs.values() if run.parent_name == FIXED), 60.0)
    assert main(["report", "claims", "--scale", "paper"]) == 0
    says = "Claim learned-prototypes was checked before 1 of its 4 results changed"
    assert says in capsys.readouterr().out and says in Path("reports/paper/index.html").read_text()
