"""VOC detection: Detectron2's evaluator on known cases, the converted trunk, the order of batches, the recipe."""

import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch import Tensor, nn

from evals.voc_detection import dataset
from evals.voc_detection import protocol as voc_detection
from evals.voc_detection.compatibility import Boxes, CfgNode, Instances, build_lr_scheduler, voc_ap
from evals.voc_detection.dataset import AspectRatioGroupedSampler
from evals.voc_detection.detector import HEAD_PREFIXES, build_config, build_detector, to_detectron2_names
from evals.voc_detection.protocol import ProtocolConfig, fit, read_images
from evals.voc_detection.trainer import DetectorTrainer, GuardHook, LogHook
from evals.voc_detection.voc_metrics import voc_evaluator
from models.networks.resnet import BLOCKS, ResNet
from models.zoo.layouts import SamePool
from reproduce.config.compose import compose
from reproduce.config.schema import Dataset
from reproduce.config.validate import to_dataclass
from reproduce.data.datasets.voc import VOC_CLASSES, VocBox, VocImage
from reproduce.engine.loop import StepLogger
from reproduce.engine.nan_guard import FiniteGuard
from reproduce.engine.precision import loss_scaler
from reproduce.errors import TrainingFailed, UserError
from tests.networks import random_trunk
from tests.unit.engine.test_distributed import outcome
from tests.unit.evals.voc_ranks import BATCHES

CAT, DOG = VOC_CLASSES.index("cat"), VOC_CLASSES.index("dog")


def protocol(scale: str, *overrides: str, name: str = "voc_detection") -> ProtocolConfig:
    asked = [f"eval={name}", f"scale={scale}", "checkpoint=x", *overrides]
    return to_dataclass(compose("evaluate", asked).protocol, ProtocolConfig, "protocol")


@pytest.fixture(scope="module", params=BLOCKS)
def detector(request: pytest.FixtureRequest) -> tuple[ResNet, Any, CfgNode]:
    trunk = random_trunk(0.0625, BLOCKS[request.param])
    cfg = build_config(protocol("smoke", "scale.detection.freeze_at=0").detectron2, trunk)
    found = build_detector(cfg, trunk).double().eval()
    return trunk.double(), found, cfg


def test_features_are_the_same_before_and_after_conversion(detector: tuple[ResNet, Any, CfgNode]) -> None:
    trunk, found, _ = detector
    images = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    seen: dict[str, torch.Tensor] = {}
    trunk.layer3[-1].register_forward_hook(lambda _m, _i, out: seen.update(res4=out))
    trunk.layer4[-1].register_forward_hook(lambda _m, _i, out: seen.update(res5=out))
    trunk(images)
    res4 = found.backbone(images)["res4"]
    torch.testing.assert_close(res4, seen["res4"], rtol=1e-12, atol=1e-12)
    res5 = found.roi_heads.res5
    *blocks, norm = res5
    torch.testing.assert_close(nn.Sequential(*blocks)(res4), seen["res5"], rtol=1e-12, atol=1e-12)
    assert isinstance(norm, nn.SyncBatchNorm) and res5.norm is norm


def test_no_tensor_of_the_trunk_is_lost_or_frozen(detector: tuple[ResNet, Any, CfgNode]) -> None:
    trunk, found, _ = detector
    state, names = found.state_dict(), to_detectron2_names(trunk)
    assert len(names) == len(trunk.state_dict())
    assert set(state) - set(names) == {name for name in state if name.startswith(HEAD_PREFIXES)}
    assert all(parameter.requires_grad for parameter in found.parameters())
    norms = [module for module in found.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    of_trunk = [module for module in trunk.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == len(of_trunk) + 1 and all(isinstance(module, nn.SyncBatchNorm) for module in norms)


def test_a_trunk_that_pools_as_tensorflow_does_is_refused() -> None:
    trunk = ResNet(0.0625)
    trunk.maxpool = SamePool(kernel_size=3, stride=2)
    with pytest.raises(UserError, match="begins with a 7x7 convolution and a pooling padded as in PyTorch"):
        build_detector(build_config(protocol("smoke").detectron2, trunk), trunk)
    small = ResNet(0.0625, stem="3x3")
    with pytest.raises(UserError, match="Faster R-CNN can't use it"):
        build_detector(build_config(protocol("smoke").detectron2, small), small)


def test_the_recipe_to_the_letter() -> None:
    cfg = build_config(protocol("paper").detectron2, ResNet(1, blocks=(1, 1, 1, 1)))
    model, rpn, solver = cfg.MODEL, cfg.MODEL.RPN, cfg.SOLVER
    assert (model.RESNETS.NORM, model.BACKBONE.FREEZE_AT, model.RESNETS.STRIDE_IN_1X1) == ("SyncBN", 0, False)
    assert (model.RESNETS.STEM_OUT_CHANNELS, model.RESNETS.RES2_OUT_CHANNELS) == (64, 256)
    assert (model.ROI_HEADS.NAME, model.ROI_HEADS.NUM_CLASSES, model.MASK_ON) == ("Res5ROIHeadsExtraNorm", 20, False)
    assert (model.PIXEL_MEAN, model.PIXEL_STD) == ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    assert cfg.INPUT.FORMAT == "RGB" and list(cfg.INPUT.MIN_SIZE_TRAIN) == list(range(480, 801, 32))
    assert (cfg.INPUT.MIN_SIZE_TEST, rpn.PRE_NMS_TOPK_TEST, rpn.POST_NMS_TOPK_TEST) == (800, 6000, 1000)
    assert (solver.MAX_ITER, list(solver.STEPS), solver.BASE_LR) == (24000, [18000, 22000], 0.1)
    assert (cfg.TEST.PRECISE_BN.ENABLED, cfg.TEST.PRECISE_BN.NUM_ITER) == (True, 200)
    assert (rpn.NMS_THRESH, model.ROI_HEADS.NMS_THRESH_TEST, model.ROI_HEADS.SCORE_THRESH_TEST) == (0.7, 0.5, 0.05)
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 100
    assert protocol("paper").batch_size == protocol("paper").base_batch_size == 16
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=solver.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    expected = {0: 0.0333, 500: 0.06665, 1000: 0.1, 17999: 0.1, 18000: 0.01, 21999: 0.01, 22000: 0.001, 23999: 0.001}
    for step, lr in expected.items():
        scheduler.last_epoch = step
        assert scheduler.get_lr() == pytest.approx([lr])


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    return {key: value for name in node for key, value in flat(node[name], f"{prefix}.{name}".lstrip(".")).items()}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("voc_detection_moco", {"SOLVER.BASE_LR": 0.02, "SOLVER.WARMUP_FACTOR": 0.001, "SOLVER.WARMUP_ITERS": 100}),
        ("voc_detection_bownet", {"SOLVER.BASE_LR": 0.01, "SOLVER.WARMUP_FACTOR": 0.001, "SOLVER.WARMUP_ITERS": 100}),
        (
            "voc_detection_supervised",
            {"SOLVER.BASE_LR": 0.02, "SOLVER.WARMUP_FACTOR": 0.001, "SOLVER.WARMUP_ITERS": 100},
        ),
        (
            "voc_detection_pirl",
            {
                "MODEL.BACKBONE.FREEZE_AT": 2,
                "MODEL.RESNETS.NORM": "FrozenBN",
                "MODEL.ROI_HEADS.NAME": "Res5ROIHeads",
                "SOLVER.BASE_LR": 0.002,
                "SOLVER.WARMUP_FACTOR": 0.001,
                "TEST.PRECISE_BN.ENABLED": False,
            },
        ),
    ],
)
def test_what_the_other_papers_protocols_change(name: str, changes: dict[str, Any]) -> None:
    swav, other = (flat(protocol("paper", name=each).detectron2) for each in ("voc_detection", name))
    assert {key: value for key, value in other.items() if swav[key] != value} == changes
    assert swav.keys() == other.keys()
    assert protocol("paper", name=name).batch_size == 16


def test_pirls_detector_has_frozen_batchnorm_and_no_extra_one() -> None:
    trunk = random_trunk(0.0625)
    found: Any = (
        build_detector(build_config(protocol("smoke", name="voc_detection_pirl").detectron2, trunk), trunk)
        .train()
        .double()
    )
    assert not [module for module in found.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(found.roi_heads.res5) == 3
    trained = {name.split(".")[0] for name, value in found.backbone.named_parameters() if value.requires_grad}
    assert trained == {"res3", "res4"}
    images = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    seen: dict[str, Tensor] = {}
    trunk.layer3[-1].register_forward_hook(lambda _m, _i, out: seen.update(res4=out))
    trunk.double()(images)
    torch.testing.assert_close(found.backbone(images)["res4"], seen["res4"], rtol=1e-12, atol=1e-12)


def test_smoke_trains_no_more_of_the_trunk_than_res5() -> None:
    trunk = random_trunk(0.0625, BLOCKS[14])
    found: Any = build_detector(build_config(protocol("smoke").detectron2, trunk), trunk).train().double()
    assert not any(parameter.requires_grad for parameter in found.backbone.parameters())
    assert all(parameter.requires_grad for parameter in found.roi_heads.parameters())
    images = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    expected = nn.Sequential(*list(trunk.double().eval().children())[:-2])(images)  # without layer4 and pooling
    for _ in range(2):  # statistics are frozen, too: the second pass would differ
        torch.testing.assert_close(found.backbone(images)["res4"], expected, rtol=1e-12, atol=1e-12)


def test_an_unknown_key_of_detectron2_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"config protocol\.detectron2: .*SOLVER\.BASE_RATE"):
        build_config({"SOLVER": {"BASE_RATE": 1}}, ResNet(0.0625))


OVERLAPS = torch.tensor(
    [
        [0.0, 0.0, 10.0, 10.0],
        [0.0, 0.0, 10.0, 7.1],  # IoU .71 with the first, .69 and .49 / .71 with the next
        [0.0, 0.0, 10.0, 6.9],
        [0.0, 0.0, 10.0, 5.1],
        [0.0, 0.0, 10.0, 4.9],
    ]
)
"""Boxes at either side of both thresholds of non-maximum suppression: IoU .71, .69, .51 and .49 with the first."""


@pytest.mark.parametrize(("other", "survives"), [(1, False), (2, True)])
def test_proposals_above_an_iou_of_seven_tenths_are_suppressed(
    detector: tuple[ResNet, Any, CfgNode], other: int, survives: bool
) -> None:
    boxes = OVERLAPS[[0, other]]
    logits, deltas = torch.tensor([[2.0, 1.0]]), torch.zeros(1, 2, 4)
    (kept,) = detector[1].proposal_generator.predict_proposals([Boxes(boxes)], [logits], [deltas], [(100, 100)])
    assert torch.equal(kept.proposal_boxes.tensor, boxes if survives else boxes[:1])


@pytest.mark.parametrize(
    ("other", "labels", "survives"), [(3, (CAT, CAT), False), (4, (CAT, CAT), True), (1, (CAT, DOG), True)]
)
def test_detections_of_one_class_above_an_iou_of_a_half_are_suppressed(
    detector: tuple[ResNet, Any, CfgNode], other: int, labels: tuple[int, int], survives: bool
) -> None:
    proposals = Instances((100, 100))
    proposals.proposal_boxes = Boxes(OVERLAPS[[0, other]])
    scores = torch.full((2, 21), -9.0)
    scores[[0, 1], list(labels)] = torch.tensor([9.0, 8.0])
    (kept,), _ = detector[1].roi_heads.box_predictor.inference((scores, torch.zeros(2, 80)), [proposals])
    assert kept.pred_classes.tolist() == list(labels[: 1 + survives])


class NormDetector(nn.Module):
    """Stands for a detector: one BatchNorm over what each image is. It notes the seed of each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.seeds = nn.BatchNorm1d(2), list[int]()

    def forward(self, inputs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        self.seeds.append(torch.initial_seed())
        return {"loss_cls": self.norm(torch.stack([each["image"] for each in inputs])).square().mean()}


@pytest.mark.parametrize("precise", [True, False])
def test_a_training_ends_with_the_statistics_of_all_images_of_precise_batchnorm(
    monkeypatch: pytest.MonkeyPatch, precise: bool
) -> None:
    """Those of the batches together, whatever their sizes, and nothing of what was averaged in training."""
    rows = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    batches = [[{"image": row} for row in share] for share in rows.split([2, 4, 3])]
    asked = []

    def batches_of(_train: Any, _cfg: Any, _context: Any, *which: int) -> Any:
        asked.append(which)
        return iter(batches if which[0] == 8 else [[{"image": torch.full((2,), value)} for value in (5.0, 7.0)]] * 2)

    checkpoints = SimpleNamespace(finish=lambda _: None, save_if_due=lambda _: None)
    monkeypatch.setattr(voc_detection, "batches", batches_of)
    monkeypatch.setattr(voc_detection, "resume", lambda *_, **__: (checkpoints, 0))
    cfg = build_config(protocol("smoke").detectron2, ResNet(0.0625))
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 2, ()
    cfg.TEST.PRECISE_BN.ENABLED, cfg.TEST.PRECISE_BN.NUM_ITER = precise, 3
    net = NormDetector()
    context: Any = SimpleNamespace(
        cfg=SimpleNamespace(seed=7, precision="fp32", logging=SimpleNamespace(every_steps=9)),
        run=SimpleNamespace(
            folder=Path(),
            metrics=SimpleNamespace(log=lambda *_, **__: None),
            first_steps=SimpleNamespace(watch=lambda *_: None, wants=lambda _: False),
        ),
        preemption=SimpleNamespace(checkpoint_and_stop_if_requested=lambda *_: None),
    )
    fit(net, [], cfg, context)
    in_training = [7_000_021 * 4096, 7_000_022 * 4096]
    if precise:
        assert asked == [(7, 0, 2), (8, 0, 3)]  # another order than the training's
        torch.testing.assert_close(net.norm.running_mean, rows.mean(0))
        torch.testing.assert_close(net.norm.running_var, rows.var(0, unbiased=False))
        assert net.seeds == [*in_training, *[7_000_023 * 4096] * 3]
    else:
        assert asked == [(7, 0, 2)]
        mean = torch.full((2,), 6 * (1 - 0.9**2))  # two steps towards 6, by a tenth each
        torch.testing.assert_close(net.norm.running_mean, mean)
        assert net.seeds == in_training


def test_ranks_agree_on_precise_statistics_and_sample_proposals_of_their_own(tmp_path: Path) -> None:
    """Each weights the steps, whose means all ranks share, by its own number of boxes; all end with the average."""
    found = outcome(2, tmp_path / "out.pt", "tests.unit.evals.voc_ranks")
    steps = [np.mean(np.concatenate(both)) for both in zip(*BATCHES, strict=True)]
    own = [np.average(steps, weights=[len(batch) for batch in batches]) for batches in BATCHES]
    assert abs(own[0] - own[1]) > 0.1  # so that the average is neither
    assert found["means"].flatten().tolist() == pytest.approx([np.mean(own)] * 2)
    assert found["seeds"].tolist() == [3_000_014 * 4096, 3_000_014 * 4096 + 1]


def found(*boxes: tuple[int, float, tuple[float, float, float, float]]) -> list[dict[str, Any]]:
    """What a detector gives for a picture: label, score, corners."""
    instances = Instances((100, 100))
    instances.pred_boxes = Boxes(torch.tensor([corners for _, _, corners in boxes]).reshape(-1, 4))
    instances.scores = torch.tensor([score for _, score, _ in boxes])
    instances.pred_classes = torch.tensor([label for label, _, _ in boxes], dtype=torch.int64)
    return [{"instances": instances}]


def picture(name: str, *boxes: VocBox) -> VocImage:
    return VocImage(name, f"/{name}.jpg", 100, 100, list(boxes))


def test_detections_with_known_precision() -> None:
    """Cats: hit, miss, hit of three. Dogs: one found at IoU 0.6, another only difficult, which does not count."""
    square = (10.0, 10.0, 50.0, 50.0)
    test = [
        picture("1", VocBox(CAT, square, False), VocBox(DOG, (0, 60, 100, 100), False)),
        picture("2", VocBox(CAT, square, False), VocBox(DOG, square, True)),
        picture("3", VocBox(CAT, square, False)),
    ]
    with voc_evaluator(test) as ours:
        assert ours.num_classes_scored == 2
        ours.process([{"image_id": "1"}], found((CAT, 0.9, square), (DOG, 0.8, (0, 60, 60, 100))))
        ours.process([{"image_id": "2"}], found((CAT, 0.7, square), (DOG, 0.9, square)))
        ours.process([{"image_id": "3"}], found((CAT, 0.8, (60, 60, 90, 90))))
        metrics = ours.metrics()
    # Recall 1/3 at precision 1, 2/3 at 2/3: of the eleven points four see 1 (0 to .3), three see 2/3 (.4 to .6).
    cats = (4 * 1 + 3 * 2 / 3) / 11 * 100
    assert metrics["ap50"] == pytest.approx((cats + 100) / 2)
    assert metrics["ap75"] == pytest.approx(cats / 2)
    assert metrics["ap"] == pytest.approx((10 * cats + 2 * 100) / 10 / 2)  # dogs at thresholds .5 and .55 (IoU .6)


def test_eleven_points_and_all_points_by_hand() -> None:
    # Ranked: hit, miss, miss, hit of two. Recall 1/2 at precision 1, recall 1 at precision 1/2.
    recall, precision = np.array([0.5, 0.5, 0.5, 1.0]), np.array([1, 1 / 2, 1 / 3, 1 / 2])
    assert voc_ap(recall, precision, use_07_metric=True) == pytest.approx((6 * 1 + 5 * 1 / 2) / 11)
    assert voc_ap(recall, precision, use_07_metric=False) == pytest.approx(1 / 2 * 1 + 1 / 2 * 1 / 2)


def batches(wide: list[bool], first: int = 0, rank: int = 0, ranks: int = 1) -> list[list[tuple[int, int]]]:
    return list(AspectRatioGroupedSampler(wide, 4, 7, first, 30, rank, ranks))


def test_batches_are_of_pairs_of_one_orientation_and_the_same_on_any_number_of_ranks() -> None:
    wide = [number % 3 > 0 for number in range(15)]
    whole = batches(wide)
    for batch in whole:
        assert [place % 4 for place, _ in batch] == [0, 1, 2, 3]
        assert all(wide[batch[at][1]] == wide[batch[at + 1][1]] for at in (0, 2))
    # 120 places are 8 epochs of 15 but for the pictures that still wait for a partner.
    seen = Counter(index for batch in whole for _, index in batch)
    assert set(seen) == set(range(15)) and all(6 <= times <= 10 for times in seen.values())
    shares = [batches(wide, rank=rank, ranks=2) for rank in (0, 1)]
    assert [first + second for first, second in zip(*shares, strict=True)] == whole
    assert batches(wide, first=11) == whole[11:]


@pytest.mark.parametrize(("batch_size", "ranks"), [(3, 1), (4, 3)])
def test_a_batch_that_cannot_be_shared_raises(batch_size: int, ranks: int) -> None:
    with pytest.raises(UserError, match=f"protocol.batch_size {batch_size} must be a multiple of 2"):
        AspectRatioGroupedSampler([True] * 9, batch_size, 0, 0, 1, 0, ranks)


class NotFiniteAtStep(nn.Module):
    """Stands for a detector whose loss is NaN at one step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.weight, self.step, self.num_calls = nn.Parameter(torch.ones(())), step, 0

    def forward(self, _inputs: list[Any]) -> dict[str, Tensor]:
        self.num_calls += 1
        return {"loss_cls": self.weight * (float("nan") if self.num_calls == self.step else 1)}


def test_detectron2s_trainer_logs_when_due_and_stops_at_a_loss_that_is_not_finite() -> None:
    net, logged = NotFiniteAtStep(5), []
    trainer = DetectorTrainer(
        net, iter([[]] * 9), torch.optim.SGD(net.parameters(), 0.1), loss_scaler("fp32"), "fp32", seed=0
    )
    guard = FiniteGuard(lambda _: Path("dump.pt"), "lower SOLVER.BASE_LR")
    logger = StepLogger(lambda step, _, **values: logged.append((step, values["loss_cls"])), log_every=2, batch_size=1)
    trainer.register_hooks([GuardHook(guard), LogHook(logger, guard)])
    with pytest.raises(TrainingFailed, match=r"at step 5: lower SOLVER\.BASE_LR.*dump\.pt"):
        trainer.train(0, 9)
    assert [step for step, _ in logged] == [2, 4]
    assert [loss for _, loss in logged] == pytest.approx([0.9, 0.7])


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_images_are_not_turned_away_from_their_boxes(tmp_path: Path, orientation: int) -> None:
    """Detectron2's own reader turns them, and a box of a turned image lies elsewhere."""
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[2:12, 5:25] = 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(tmp_path / "1.jpg", exif=exif, quality=100)
    image = VocImage("1", str(tmp_path / "1.jpg"), 40, 30, [VocBox(CAT, (5, 2, 25, 12), difficult=False)])
    cfg = build_config(protocol("smoke").detectron2, random_trunk(0.0625))
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.RANDOM_FLIP = (30,), 30, "none"
    tested, unreadable = dataset.TestDataset([image], cfg)[0]
    assert tested is not None, unreadable
    assert (tested["image"].numpy().transpose(1, 2, 0).astype(int) - pixels).__abs__().max() < 60
    (trained, _) = dataset.TrainDataset([image], cfg, 0)[0, 0]
    (box,) = trained["instances"].gt_boxes.tensor.round().int().tolist()
    assert box == [5, 2, 25, 12]
    left, top, right, bottom = box
    assert trained["image"][:, top:bottom, left:right].min() > 190 > 60 > trained["image"][:, 14:].max()


def test_an_image_is_augmented_anew_each_time_that_it_comes(tmp_path: Path) -> None:
    """By its position in the run, which is another in each epoch."""
    Image.fromarray(np.arange(40 * 30 * 3, dtype=np.uint8).reshape(30, 40, 3)).save(tmp_path / "1.png")
    image = VocImage("1", str(tmp_path / "1.png"), 40, 30, [VocBox(CAT, (5, 2, 25, 12), difficult=False)])
    cfg = build_config(protocol("smoke").detectron2, random_trunk(0.0625))
    cfg.INPUT.MIN_SIZE_TRAIN = (30,)
    data = dataset.TrainDataset([image], cfg, 0)
    boxes = [tuple(data[position, 0][0]["instances"].gt_boxes.tensor.flatten().tolist()) for position in range(20)]
    assert len(set(boxes)) == 2  # as it is, and mirrored
    assert boxes[:3] == [tuple(data[at, 0][0]["instances"].gt_boxes.tensor.flatten().tolist()) for at in range(3)]


def test_an_image_of_another_size_than_before_is_unreadable(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "1.jpg")
    cfg = build_config(protocol("smoke").detectron2, random_trunk(0.0625))
    found, said = dataset.TestDataset([VocImage("1", str(tmp_path / "1.jpg"), 41, 30, [])], cfg)[0]
    assert found is None and said.startswith(f"{tmp_path / '1.jpg'} (Mismatched image shape")


@pytest.mark.parametrize("root", [".", "VOCdevkit/VOC2007", "{data}/VOCdevkit/VOC2007"])
def test_the_second_year_is_found_below_data_wherever_the_first_is(own_data: Path, tmp_path: Path, root: str) -> None:
    devkit = own_data / "VOCdevkit"
    data = devkit / "VOC2007" if root == "." else own_data
    shutil.copytree(devkit / "VOC2007", data / "second")
    root = root.format(data=data)
    voc = Dataset("voc0712", "tiny", "voc", root, "trainval", "test", "second")
    run = SimpleNamespace(counts={}, handle_bad_annotations=lambda _: None, record_split=lambda *_: None)
    cfg = SimpleNamespace(paths=SimpleNamespace(data_root=str(data)))
    context: Any = SimpleNamespace(run=run, cfg=cfg, dataset=voc, root=data / root)
    train, _ = read_images(context)
    first = [image for image in train if not image.path.startswith(f"{data / 'second'}/")]
    assert 0 < len(first) == len(train) / 2
