"""What a plan costs, against the paper's own numbers and sums done by hand."""

import json
import re
from pathlib import Path

import pytest

from models.zoo import entries
from reproduce.__main__ import main
from reproduce.harness.plan import build, cost, cost_facts, cost_report
from reproduce.harness.plan.cost import RunCost
from reproduce.harness.plan.model import Plan, Request
from reproduce.harness.spec import tables
from tests.unit.harness.verdicts import Finish


def paper(*names: str, data: str | None = None, seeds: tuple[int, ...] = (0,)) -> Plan:
    return build.build_plan(Request(names, "paper", seeds, data))


def of(plan: Plan, name: str) -> RunCost:
    """The cost of the first run of this name."""
    costs = cost.plan_cost(plan)
    return next(costs.runs[run.run_id] for run in plan.runs.values() if run.name == name)


@pytest.mark.parametrize(
    ("table", "name", "hours", "num_gpus", "source"),
    [
        ("table3", "swav_800ep", 8 * 6.25, 64, "Table 1: 6h15 per 100 epochs of 2x224+6x96"),
        ("table8", "swav_400ep_prototypes300", 4 * (4 + 50 / 60), 64, "Table 1: 4h50"),
        ("release_notes", "swav_400ep_2x224", 4 * 4.15, 64, "Table 1: 4h09"),
        ("release_notes", "swav_200ep_bs256", 200 * (52 + 10 / 60) / 60, 4, "release notes: 52min10s an epoch"),
    ],
)
def test_published_hours(checkout: Path, table: str, name: str, hours: float, num_gpus: int, source: str) -> None:
    priced = of(paper(table), name)
    assert priced.hours == pytest.approx(hours)
    assert (priced.num_gpus, priced.basis) == (num_gpus, "published")
    assert source in priced.source


def test_a_wider_trunk_is_an_estimate_with_its_arithmetic(checkout: Path) -> None:
    """w2, 2x224+4x96 on 128 GPUs: 25 h x 64 / 128, times (2 x 224^2 + 4 x 96^2) / (2 x 224^2 + 6 x 96^2), times 2^2."""
    priced = of(paper("table2"), "swav_w2_400ep")
    assert priced.hours == pytest.approx(25 * 0.5 * 137216 / 155648 * 4)
    assert (priced.num_gpus, priced.basis) == (128, "estimate")
    assert "x 0.88 of its pixels x width 2 squared, on 128 GPUs" in priced.source


@pytest.mark.parametrize(
    ("experiment", "hours", "disk_gb"),
    [
        ("rotnet_105ep", 105 * 4, None),  # each crop four times
        ("bownet_305ep", 105 * 4 + 200, None),  # as long as it is a RotNet
        ("cmc_w2_240ep", 240 * 4 * 2, (2 * (94e6 + 4096 * 128) * 8 + 2 * 1_281_167 * 128 * 4) / 1e9 + 0.001),
    ],
)
def test_what_a_method_passes_through_its_networks_is_counted(
    checkout: Path, experiment: str, hours: float, disk_gb: float | None
) -> None:
    """RotNet's rotations, and CMC's two networks of width 2. Crops of 224 pixels; `hours` by one pass of 100 epochs."""
    priced = of(build.single_run_plan(Request((), "paper"), "pretrain", experiment), experiment)
    assert priced.gpu_hours == pytest.approx(6.25 * 64 * 224**2 / 155648 * hours / 100, rel=1e-3)
    assert disk_gb is None or priced.disk_gb == pytest.approx(disk_gb)


def test_both_networks_of_a_pair_are_evaluated(checkout: Path) -> None:
    plan = paper("table2")
    runs = {run.parent_name: run for run in plan.runs.values() if run.name == "linear_imagenet"}
    hours = {name: cost.plan_cost(plan).runs[runs[name].run_id].hours for name in ("cmc_w2_240ep", "swav_w2_400ep")}
    assert hours["cmc_w2_240ep"] == pytest.approx(2 * (hours["swav_w2_400ep"] or 0))


def test_an_evaluation_is_an_estimate_with_its_arithmetic(checkout: Path) -> None:
    priced = of(paper("table3"), "linear_places205")
    assert priced.hours == pytest.approx(28 * (2_448_873 + 20_500) / 1261 / 3600)
    assert (priced.num_gpus, priced.gpu, priced.basis) == (1, "V100", "estimate")
    wide = build.build_plan(Request(("table2",), "paper"))
    runs = {
        run.parent_name: cost.plan_cost(wide).runs[run.run_id] for run in wide.runs.values() if run.kind == "evaluate"
    }
    assert runs["swav_w4_400ep"].hours == pytest.approx(100 * 1_331_167 / 1261 / 3600 * 16)


@pytest.mark.parametrize(("name", "hours", "num_gpus"), [("coco_detr", 72, 16), ("voc_detection", 3.6, 8)])
def test_a_detector_costs_its_papers_gpu_hours_on_any_number_of_gpus(
    checkout: Path, name: str, hours: float, num_gpus: int
) -> None:
    def single(*options: str) -> Plan:
        return build.single_run_plan(Request((), "paper", cluster_options=options), "evaluate", name, "any")

    priced = of(single(), name)
    assert priced.hours == pytest.approx(hours)
    assert (priced.num_gpus, priced.basis) == (num_gpus, "published")
    fewer = of(single("detector_processes=4"), name)
    assert fewer.gpu_hours == pytest.approx(hours * num_gpus)
    assert (fewer.num_gpus, fewer.basis) == (4, "estimate")
    assert fewer.source.endswith("; as many GPU-hours on 4 GPUs")


def test_measured_cost_comes_first(checkout: Path, finish: Finish) -> None:
    plan = paper("table7", seeds=(0, 1))
    done = next(run for run in plan.runs.values() if run.name == "swav_800ep")
    finish(done, wall_seconds=36_000.0, provenance={"world_size": 16, "hardware": "8 x NVIDIA A100-SXM4-80GB"})
    costs = cost.plan_cost(plan)
    (first, second) = [costs.runs[run.run_id] for run in plan.runs.values() if run.name == "swav_800ep"]
    assert (first.hours, first.num_gpus, first.gpu, first.basis) == (10.0, 16, "A100", "measured")
    assert (second.gpu_hours, second.source) == (160.0, "the same run with other seeds, 8 x NVIDIA A100-SXM4-80GB")
    evaluations = 2 * (of(plan, "knn_head").hours or 0)
    assert costs.gpu_hours("A100", costs.runs) == pytest.approx(320 + evaluations / 2)
    assert costs.gpu_hours("V100", costs.to_do) == pytest.approx(320 + evaluations)


def test_an_evaluation_of_another_network_is_not_the_same_run(checkout: Path, finish: Finish) -> None:
    """linear_imagenet of a network twice as wide takes four times as long, under the same name."""
    plan = paper("table2", seeds=(0, 1))
    linear = [run for run in plan.runs.values() if run.name == "linear_imagenet"]
    before = cost.plan_cost(plan)
    narrow = next(run for run in linear if run.parent_name == "swav_w2_400ep")
    finish(narrow, wall_seconds=7200.0, provenance={"world_size": 1, "hardware": "1 x NVIDIA A100-SXM4-80GB"})
    costs = cost.plan_cost(plan)
    measured = [run for run in linear if costs.runs[run.run_id].basis == "measured"]
    assert [(run.parent_name, run.seed) for run in measured] == [("swav_w2_400ep", 0), ("swav_w2_400ep", 1)]
    assert {costs.runs[run.run_id].hours for run in measured} == {2.0}
    wide = next(run.run_id for run in linear if run.parent_name == "swav_w4_400ep")
    assert costs.runs[wide] == before.runs[wide]


@pytest.mark.parametrize(
    ("hardware", "gpu"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA RTX A1000", "NVIDIA RTX A1000"),
        ("Tesla V100S-PCIE-32GB", "Tesla V100S-PCIE-32GB"),
    ],
)
def test_a_gpu_is_known_by_a_whole_word_of_its_name(checkout: Path, finish: Finish, hardware: str, gpu: str) -> None:
    plan = build.single_run_plan(Request((), "paper"), "pretrain", "swav_800ep")
    (run,) = plan.runs.values()
    finish(run, provenance={"world_size": 1, "hardware": f"1 x {hardware}"})
    assert cost.plan_cost(plan).runs[run.run_id].gpu == gpu


def test_a_gpu_without_a_factor_leaves_runs_to_do_their_estimates(checkout: Path, finish: Finish) -> None:
    plan = paper("figure3", seeds=(0, 1))
    before = cost.plan_cost(plan)
    done = next(iter(plan.runs.values()))
    finish(done, provenance={"world_size": 8, "hardware": "8 x Some Other"})
    costs = cost.plan_cost(plan)
    assert costs.unpriced(costs.runs) == [done.run_id]
    assert costs.runs[done.run_id].basis == "measured"
    assert {name: costs.runs[name] for name in costs.to_do} == {name: before.runs[name] for name in costs.to_do}


def test_runs_of_unknown_cost_stay_out_of_the_sums(checkout: Path) -> None:
    plan = build.build_plan(Request(("table7",), "paper", data_config="cifar10"))
    costs = cost.plan_cost(plan)
    assert len(costs.unpriced(costs.to_do)) == 1
    assert "not in the sums: 1 runs" in cost_report.as_text(plan, costs)


@pytest.mark.parametrize("names", [("table3",), ("table3", "table9"), ("table7", "claims")])
def test_the_released_subset_costs_what_its_own_plan_costs(checkout: Path, names: tuple[str, ...]) -> None:
    """What FROM=released is said to cost is what a plan of it says, to the digit."""
    plan, own = paper(*names), build.build_plan(Request(names, "paper", source="released"))
    told, asked = cost_report.as_data(plan, cost.plan_cost(plan)), cost_report.as_data(own, cost.plan_cost(own))
    for gpu in ("V100", "A100", "H100"):
        assert told["gpus"][gpu]["gpu_hours_from_released"] == asked["gpus"][gpu]["gpu_hours"] > 0
    hours = f"{asked['gpus']['V100']['gpu_hours']:,.0f}"
    assert (
        f"FROM=released: {len(own.runs)} evaluations of published weights, {len(own.cells)} cells, {hours} GPU-hours on"
        in " ".join(cost_report.as_text(plan, cost.plan_cost(plan)).split())
    )
    assert f"of all runs on V100: {hours}\n" in cost_report.as_text(own, cost.plan_cost(own))
    assert "cheapest honest subset" not in cost_report.as_text(own, cost.plan_cost(own))


def test_without_public_weights_there_is_no_released_subset(checkout: Path) -> None:
    plan = paper("table9")  # no ablation's is
    assert cost.plan_cost(plan).released is None
    assert "FROM=released" not in cost_report.as_text(plan, cost.plan_cost(plan))
    known = {row.pretrain for row in tables.load("release_notes", "paper").rows if row.pretrain}
    assert known <= {item.name for item in entries.load_entries().values() if item.url}


def test_checkpoint_size_is_weights_and_momentum(checkout: Path) -> None:
    """23.5 M weights of the trunk, 2048 x 2048 + 2048 x 128 of the head, 3000 x 128 prototypes; 8 bytes each."""
    weights = 23.5e6 + 2048 * 2048 + 2048 * 128 + 3000 * 128
    assert of(paper("table3"), "swav_800ep").disk_gb == pytest.approx(weights * 8 / 1e9 + 0.001)


def test_data_requirements_name_what_is_missing(checkout: Path) -> None:
    for name in ("imagenet/train", "imagenet/val", "places205/train"):
        (checkout / "data" / name).mkdir(parents=True)
    needed = {each.name: each for each in cost.plan_cost(paper("table3", data="data")).data}
    assert (needed["imagenet"].state, needed["imagenet"].size) == ("there", "1,331,167 images, about 145 GB")
    assert needed["places205"].state == "not there" and "places205/val is missing" in needed["places205"].missing


def test_other_data_at_scale_paper_has_no_published_hours(checkout: Path) -> None:
    plan = build.build_plan(Request(("table7",), "paper", data_config="cifar10"))
    costs = cost.plan_cost(plan)
    bases = {run.kind: costs.runs[run.run_id].basis for run in plan.runs.values()}
    assert bases == {"pretrain": "unknown", "evaluate": "estimate"}  # whose size and a GPU's forward pass are known
    assert " ? [1]" in cost_report.as_text(plan, costs)


def test_a_cpu_at_scale_lite_is_an_estimate_with_its_arithmetic(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three epochs of 2 x 32^2 + 4 x 16^2 pixels; w4 is twice as wide there, and has four small crops, too."""
    speed = cost_facts.load().cpu["lite"]
    plan = build.build_plan(Request(("table9", "widths"), "lite", data="images"))
    costs = cost.plan_cost(plan)
    priced = {run.name: costs.runs[run.run_id] for run in plan.runs.values()}
    swav, hours = priced["swav_400ep_2x160_4x96"], 3 * 50_000 * 3072 / speed.training / 3600
    assert swav.hours == pytest.approx(hours)
    assert (swav.num_gpus, swav.basis) == (0, "estimate") and "150,000 images of 3,072 pixels, at" in swav.source
    assert priced["swav_w4_400ep"].hours == pytest.approx(2 * hours)
    linear = costs.runs[next(run.run_id for run in plan.runs.values() if run.name == "linear_imagenet")]
    assert linear.hours == pytest.approx(4 * 60_000 * 1024 / speed.evaluation / 3600)
    assert costs.cpu_seconds(plan)["pretrain/swav_400ep_2x160_4x96"] == pytest.approx(3600 * hours)
    assert main(["plan", "table9", "--scale", "lite", "--data", "images", "--cores", "1"]) == 0
    last = capsys.readouterr().out.splitlines()
    assert any(re.search(r"12 runs, of which 12 are to do, about \d h \d\d min on 1 core$", line) for line in last)


def test_the_printed_plan_fits_a_terminal_and_the_file_has_it_all(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *tables.names("paper"), "--scale", "paper"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 120
    assert "on V100, " in out and "on H100" in out and "8322" in out
    written = json.loads(Path("reports/paper/plan.json").read_text())
    price = written["cost"]
    assert set(price["runs"]) == {run["run_id"] for run in written["runs"]}
    assert price["gpus"]["A100"]["gpu_hours"] == pytest.approx(price["gpus"]["V100"]["gpu_hours"] / 2)
    swav = next(each for name, each in price["runs"].items() if name.startswith("swav_800ep"))
    assert (swav["gpu_hours"], swav["basis"], swav["cells"]) == (3200.0, "published", 20)
    assert {each["name"] for each in price["data"]} == {"imagenet", "places205", "voc07", "inat18", "voc0712", "coco17"}


def test_checkpoints_have_what_a_method_keeps(checkout: Path) -> None:
    """Two banks of 128 numbers and three labels an image; a bank; a queue of keys and the network that makes them."""

    def disk_gb(experiment: str) -> float:
        return of(build.single_run_plan(Request((), "paper"), "pretrain", experiment), experiment).disk_gb - 0.001

    trunk, images = 23.5e6, 1_281_167
    head = 2048 * 2048 + 2048 * 128
    clusters = (trunk + head + 3000 * 128) * 8 + images * (2 * 128 + 3) * 4
    bank = (trunk + 2048 * 128) * 8 + images * 128 * 4
    keys = (trunk + head) * 12 + 65536 * 128 * 4
    found = [disk_gb(name) for name in ("deepcluster_v2_800ep", "npid_200ep", "moco_v2_200ep")]
    assert found == pytest.approx([clusters / 1e9, bank / 1e9, keys / 1e9])
