"""The detector against the general library's DETR and closed forms; matching and losses against brute force."""

import itertools
import math
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d, generalized_box_iou, generalized_box_iou_loss
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

from evals.coco_detr import protocol as coco_detr
from evals.coco_detr.detector import Detr, TransformerConfig, freeze_batchnorm, sine_positions
from evals.coco_detr.losses import LossWeights, Target, class_loss_groups, corners, losses, match_queries
from evals.coco_detr.protocol import (
    DetrTask,
    ProtocolConfig,
    build_optimizer,
    detr_loss,
    estimate_memory,
    learning_rates,
    to_detections,
)
from models.networks.resnet import ResNet
from reproduce.config.compose import compose
from reproduce.config.identity import identity
from reproduce.config.validate import to_dataclass
from reproduce.engine.precision import AUTOCAST, autocast
from reproduce.errors import TrainingFailed, UserError
from tests.host_sync import NoHostSync
from tests.unit.engine.test_distributed import outcome

WIDTH = 0.25
SIZE = TransformerConfig(num_layers=2, hidden_dim=32, num_heads=4, feedforward_dim=48, num_queries=7, dropout=0.1)
WEIGHTS = LossWeights(classes=1, l1=5, giou=2, no_object=0.1)
STAGE = "model.backbone.model.encoder.stages"
NAMES = {
    r"backbone\.trunk\.conv1": "model.backbone.model.embedder.embedder.convolution",
    r"backbone\.trunk\.bn1": "model.backbone.model.embedder.embedder.normalization",
    r"backbone\.trunk\.layer([1-4])\.(\d)\.conv([1-3])": STAGE + ".{0}.layers.{1}.layer.{2}.convolution",
    r"backbone\.trunk\.layer([1-4])\.(\d)\.bn([1-3])": STAGE + ".{0}.layers.{1}.layer.{2}.normalization",
    r"backbone\.trunk\.layer([1-4])\.(\d)\.downsample\.0": STAGE + ".{0}.layers.{1}.shortcut.convolution",
    r"backbone\.trunk\.layer([1-4])\.(\d)\.downsample\.1": STAGE + ".{0}.layers.{1}.shortcut.normalization",
    r"input_proj": "model.input_projection",
    r"query_embed": "model.query_position_embeddings",
    r"transformer\.(?=(en|de)coder)": "model.",
    r"self_attn\.out_proj": "self_attn.o_proj",
    r"multihead_attn\.out_proj": "encoder_attn.o_proj",
    r"multihead_attn": "encoder_attn",
    r"linear([12])": "mlp.fc{0}",
    r"norm1": "self_attn_layer_norm",
    r"(?<=encoder\.layers\.\d\.)norm2|norm3": "final_layer_norm",
    r"norm2": "encoder_attn_layer_norm",
    r"decoder\.norm": "decoder.layernorm",
    r"class_embed": "class_labels_classifier",
    r"bbox_embed": "bbox_predictor",
}
"""From our names of weights to the library's; numbers of stages and layers within a block count from 0 there."""


def theirs(name: str) -> str:
    for pattern, there in NAMES.items():

        def filled(found: re.Match[str], there: str = there) -> str:
            groups = list(found.groups())
            if "stages" in there:
                groups = [str(int(groups[0]) - 1), groups[1], *(str(int(number) - 1) for number in groups[2:])]
            return there.format(*groups)

        name = re.sub(pattern, filled, name)
    return name


def mapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    out = {}
    for name, value in weights.items():
        if "in_proj" in name:  # one matrix here, three there
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                out[theirs(name.replace("in_proj_", f"{part}_proj."))] = rows
        else:
            out[theirs(name)] = value
    return out


@pytest.fixture(scope="module")
def ours() -> Detr:
    torch.manual_seed(0)
    net = Detr(ResNet(WIDTH), SIZE, num_classes=5)
    for module in net.modules():
        if isinstance(module, FrozenBatchNorm2d):  # statistics of a trained network are none of 0 and 1
            for buffer in (module.weight, module.running_var):
                buffer.uniform_(0.5, 1.5)
            for buffer in (module.bias, module.running_mean):
                buffer.uniform_(-0.2, 0.2)
        if isinstance(module, nn.MultiheadAttention):  # they start at 0
            nn.init.normal_(module.in_proj_bias, std=0.1)
            nn.init.normal_(module.out_proj.bias, std=0.1)
            module.in_proj_weight.data *= 4  # sharp enough for the queries to differ
    return net.eval()


def test_inference_equals_the_librarys(ours: Detr) -> None:
    channels = [round(side * WIDTH) for side in (256, 512, 1024, 2048)]
    of_trunk: dict[str, Any] = {"hidden_sizes": channels, "out_features": ["stage4"]}
    of_detr: dict[str, Any] = {"num_queries": SIZE.num_queries, "num_labels": 5, "d_model": SIZE.hidden_dim}
    for part in ("encoder", "decoder"):
        of_detr |= {
            f"{part}_layers": SIZE.num_layers,
            f"{part}_attention_heads": SIZE.num_heads,
            f"{part}_ffn_dim": SIZE.feedforward_dim,
        }
    config = DetrConfig(backbone_config=ResNetConfig(embedding_size=channels[0] // 4, **of_trunk), **of_detr)
    oracle: nn.Module = DetrForObjectDetection(config)
    oracle.eval()
    oracle.load_state_dict(mapped(ours.state_dict()))
    torch.manual_seed(1)
    images, padding = torch.randn(2, 3, 130, 161), torch.zeros(2, 130, 161, dtype=torch.bool)
    padding[0, 97:] = padding[0, :, 65:] = True
    images = images.masked_fill(padding[:, None], 0)
    with torch.no_grad():
        logits, boxes = ours(images, padding)
        expected = oracle(pixel_values=images, pixel_mask=(~padding).long())
    torch.testing.assert_close(logits[-1], expected.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(boxes[-1], expected.pred_boxes, rtol=0, atol=1e-4)
    assert logits[-1].std(dim=1).min() > 1e-2  # the queries differ: equality says something


def test_position_codes_are_sines_and_cosines_of_the_place_among_real_pixels() -> None:
    padding = torch.zeros(1, 4, 6, dtype=torch.bool)
    padding[0, 3:] = padding[0, :, 5:] = True  # 3 x 5 places are real
    code = sine_positions(padding, channels=8)[0]
    for y, x in itertools.product(range(3), range(5)):
        places = (2 * math.pi * (y + 1) / 3, 2 * math.pi * (x + 1) / 5)
        expected = [f(at / 10_000 ** (k / 2)) for at in places for k in range(2) for f in (math.sin, math.cos)]
        assert code[:, y, x].tolist() == pytest.approx(expected, abs=1e-5)  # 1e-6 under the division


def test_trainable_parameters_and_their_learning_rates(ours: Detr) -> None:
    frozen = {name.split(".")[2] for name, value in ours.named_parameters() if not value.requires_grad}
    assert frozen == {"conv1", "layer1"}
    assert not [name for name, _ in ours.named_parameters() if ".bn" in name or "downsample.1" in name]
    protocol = to_dataclass(
        compose("evaluate", ["eval=coco_detr", "scale=paper", "checkpoint=x"]).protocol, ProtocolConfig, "protocol"
    )
    groups = build_optimizer(ours, protocol).param_groups
    trained = [value for value in ours.parameters() if value.requires_grad]
    assert sum(len(group["params"]) for group in groups) == len(trained)
    assert groups[1]["params"][0] is ours.get_parameter("backbone.trunk.layer2.0.conv1.weight")
    assert {group["weight_decay"] for group in groups} == {1e-4}
    assert [learning_rates(protocol, epoch) for epoch in (0, 199)] == [[1e-4, 5e-5]] * 2
    assert [learning_rates(protocol, epoch) for epoch in (200, 299)] == [pytest.approx([1e-5, 5e-6])] * 2
    assert (protocol.epochs, protocol.batch_size, protocol.clip_norm) == (300, 64, 0.1)
    assert protocol.transformer == TransformerConfig(
        num_layers=6, hidden_dim=256, num_heads=8, feedforward_dim=2048, num_queries=100, dropout=0.1
    )
    assert protocol.loss_weights == WEIGHTS


def test_the_transformer_starts_as_the_original_does() -> None:
    torch.manual_seed(0)
    net = Detr(ResNet(WIDTH), TransformerConfig(1, 64, 4, 128, 100, 0.1), num_classes=5)
    names = ("linear1.weight", "self_attn.in_proj_weight", "multihead_attn.out_proj.weight")
    for matrix in (net.get_parameter(f"transformer.decoder.layers.0.{name}") for name in names):
        bound = math.sqrt(6 / sum(matrix.shape))
        assert matrix.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert net.query_embed.weight.std().item() == pytest.approx(1, rel=0.05)
    names = ("class_embed.weight", "bbox_embed.layers.0.weight", "input_proj.weight")
    for matrix in map(net.get_parameter, names):
        assert matrix.abs().max().item() == pytest.approx(1 / math.sqrt(matrix[0].numel()), rel=0.02)


def giou_by_hand(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area_a, area_b = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    union = area_a + area_b - width * height
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return width * height / union - (hull - union) / hull


def some_boxes(rng: np.random.Generator, *shape: int) -> Tensor:
    """Centre, width and height, of boxes that overlap, touch nothing, or hold each other."""
    return torch.from_numpy(
        np.concatenate([rng.uniform(0.2, 0.8, (*shape, 2)), rng.uniform(0.05, 0.6, (*shape, 2))], -1)
    )


def test_giou_by_hand() -> None:
    # Two unit squares side by side with a gap of one: no overlap, and a third of their hull is empty.
    assert giou_by_hand([0, 0, 1, 1], [2, 0, 3, 1]) == pytest.approx(-1 / 3)
    assert giou_by_hand([0, 0, 2, 2], [0, 0, 1, 1]) == pytest.approx(1 / 4)
    rng = np.random.default_rng(0)
    a, b = (corners(some_boxes(rng, 30)) for _ in range(2))
    expected = [[giou_by_hand(one, other) for other in b.tolist()] for one in a.tolist()]
    torch.testing.assert_close(generalized_box_iou(a, b), torch.tensor(expected, dtype=torch.float64))


def a_case(seed: int, num_objects: list[int], layers: int = 1) -> tuple[Tensor, Tensor, list[Target]]:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(layers, len(num_objects), 5, 4)))
    boxes = some_boxes(rng, layers, len(num_objects), 5)
    return logits, boxes, [Target(torch.from_numpy(rng.integers(3, size=n)), some_boxes(rng, n)) for n in num_objects]


def cost_by_hand(logits: Tensor, box: list[float], label: int, target: list[float]) -> float:
    exponentials = [math.exp(value) for value in logits.tolist()]
    probability = exponentials[label] / sum(exponentials)
    l1 = sum(abs(p - t) for p, t in zip(box, target, strict=True))
    one, other = (corners(torch.tensor(each, dtype=torch.float64)).tolist() for each in (box, target))
    return -WEIGHTS.classes * probability + WEIGHTS.l1 * l1 - WEIGHTS.giou * giou_by_hand(one, other)


def best_by_hand(logits: Tensor, boxes: Tensor, target: Target) -> tuple[int, ...]:
    """The query of each object: the cheapest of all ways to give each one of its own."""
    labels, theirs = target.labels.tolist(), target.boxes.tolist()

    def cost(queries: tuple[int, ...]) -> float:
        pairs = zip(queries, labels, theirs, strict=True)
        return sum(cost_by_hand(logits[q], boxes[q].tolist(), label, box) for q, label, box in pairs)

    return min(itertools.permutations(range(len(boxes)), len(labels)), key=cost)


@pytest.mark.parametrize("seed", range(10))
def test_matching_equals_brute_force(seed: int) -> None:
    logits, boxes, targets = a_case(seed, [3, 0, 5, 1])
    image, query, matched = match_queries(logits, boxes, targets, WEIGHTS)[:, 0]
    firsts = itertools.accumulate((len(target.labels) for target in targets), initial=0)
    for number, first in zip(range(len(targets)), firsts, strict=False):
        here = image == number
        found = dict(zip((matched[here] - first).tolist(), query[here].tolist(), strict=True))
        assert tuple(found[key] for key in sorted(found)) == best_by_hand(
            logits[0, number], boxes[0, number], targets[number]
        )


@pytest.mark.parametrize("num_objects", [[3, 0, 5, 1], [0, 0]])
def test_losses_equal_brute_force(num_objects: list[int]) -> None:
    """Each layer under a matching of its own."""
    logits, boxes, targets = a_case(1, num_objects, layers=3)
    found = losses(logits, boxes, targets, WEIGHTS)
    for layer in range(3):
        entropy = weight = l1 = giou = 0.0
        for number, target in enumerate(targets):
            of = best_by_hand(logits[layer, number], boxes[layer, number], target)
            for query in range(5):
                label = int(target.labels[of.index(query)]) if query in of else 3
                share = 0.1 if label == 3 else 1.0
                entropy -= share * math.log(F.softmax(logits[layer, number, query], 0)[label])
                weight += share
            for query, box in zip(of, target.boxes.tolist(), strict=True):
                ours = boxes[layer, number, query]
                l1 += sum(abs(p - t) for p, t in zip(ours.tolist(), box, strict=True))
                giou += 1 - giou_by_hand(
                    corners(ours).tolist(), corners(torch.tensor(box, dtype=torch.float64)).tolist()
                )
        total = max(1, sum(num_objects))
        assert found[layer].tolist() == pytest.approx([entropy / weight, 5 * l1 / total, 2 * giou / total], rel=1e-5)


def losses_one_by_one(logits: Tensor, boxes: Tensor, targets: list[Target]) -> Tensor:
    """The losses by a cost matrix, a matching and an assignment of classes for each layer and image by itself."""
    per_class = logits.new_ones(logits.shape[-1])
    per_class[-1] = WEIGHTS.no_object
    num_objects = max(1, sum(len(target.labels) for target in targets))
    found = []
    for layer_logits, layer_boxes in zip(logits, boxes, strict=True):
        classes = torch.full(layer_logits.shape[:2], logits.shape[-1] - 1)
        predicted, true = [], []
        for number, target in enumerate(targets):
            with torch.no_grad():
                cost = (
                    -WEIGHTS.classes * layer_logits[number].softmax(-1)[:, target.labels]
                    + WEIGHTS.l1 * torch.cdist(layer_boxes[number], target.boxes, p=1)
                    - WEIGHTS.giou * generalized_box_iou(corners(layer_boxes[number]), corners(target.boxes))
                )
            queries, objects = map(torch.as_tensor, linear_sum_assignment(cost))
            classes[number, queries] = target.labels[objects]
            predicted.append(layer_boxes[number, queries])
            true.append(target.boxes[objects])
        ours, theirs = torch.cat(predicted), torch.cat(true)
        entropy = F.cross_entropy(layer_logits.flatten(0, 1), classes.flatten(), per_class, reduction="sum")
        giou = generalized_box_iou_loss(corners(ours), corners(theirs), reduction="sum")
        parts = (
            WEIGHTS.classes * entropy / per_class[classes].sum(),
            WEIGHTS.l1 * F.l1_loss(ours, theirs, reduction="sum") / num_objects,
            WEIGHTS.giou * giou / num_objects,
        )
        found.append(torch.stack(parts))
    return torch.stack(found)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_and_gradients_equal_those_of_one_layer_and_image_at_a_time(seed: int, dtype: torch.dtype) -> None:
    """To the bit: the same operations in the same order, only the copies between host and device are fewer."""
    rng = np.random.default_rng(seed)
    num_objects = [0, 20, 7, 1, 12, 0]
    logits = torch.from_numpy(rng.normal(size=(3, len(num_objects), 20, 6))).to(dtype)
    boxes = some_boxes(rng, 3, len(num_objects), 20).to(dtype)
    targets = [Target(torch.from_numpy(rng.integers(5, size=n)), some_boxes(rng, n).to(dtype)) for n in num_objects]
    outcomes = []
    for compute in (partial(losses, weights=WEIGHTS), losses_one_by_one):
        own_logits, own_boxes = (tensor.clone().requires_grad_() for tensor in (logits, boxes))
        found = compute(own_logits, own_boxes, targets)
        found.sum().backward()
        outcomes.append([found.detach(), own_logits.grad, own_boxes.grad])
    torch.testing.assert_close(*outcomes, rtol=0, atol=0)


def test_a_step_reads_the_device_once_and_writes_its_indices_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 images and 6 layers once took about 1,900 reads and copies."""
    logits, boxes, targets = a_case(0, [3, 0, 5, 1] * 16, layers=6)
    with NoHostSync():
        losses(logits.requires_grad_(), boxes.requires_grad_(), targets, WEIGHTS).sum().backward()
    copies: list[str] = []
    for name in ("cpu", "to"):
        original = getattr(Tensor, name)

        def counted(tensor: Tensor, *args: Any, name: str = name, original: Any = original, **kwargs: Any) -> Tensor:
            copies.extend([name] if name == "cpu" or any(isinstance(each, torch.device) for each in args) else [])
            return original(tensor, *args, **kwargs)

        monkeypatch.setattr(Tensor, name, counted)
    losses(logits, boxes, targets, WEIGHTS).sum().backward()
    assert copies == ["cpu", "to"]


def test_the_class_loss_of_groups_is_the_mean_of_theirs() -> None:
    """As on the authors' GPUs: each divides by the weights of its own queries, then DDP averages."""
    logits, boxes, targets = a_case(2, [3, 0, 5, 1, 2, 2], layers=2)
    groups = [slice(0, 2), slice(2, 4), slice(4, 6)]
    alone = [losses(logits[:, part], boxes[:, part], targets[part], WEIGHTS)[:, 0] for part in groups]
    found, whole = (losses(logits, boxes, targets, WEIGHTS, size) for size in (2, None))
    torch.testing.assert_close(found[:, 0], torch.stack(alone).mean(0))
    torch.testing.assert_close(found[:, 1:], whole[:, 1:])  # the boxes' losses count all objects in any case
    assert (found[:, 0] - whole[:, 0]).abs().min() > 1e-4


@pytest.mark.parametrize("group_size", [2, None])
def test_training_has_the_configured_group_of_the_class_loss(group_size: int | None) -> None:
    logits, boxes, targets = a_case(2, [3, 0, 5, 1], layers=2)
    expected, other = (
        losses(logits, boxes, targets, WEIGHTS, size).sum() for size in (group_size, 2 if group_size is None else None)
    )
    assert (expected - other).abs() > 1e-4
    protocol: Any = SimpleNamespace(
        validate_every_epochs=1, epochs=1, loss_weights=WEIGHTS, class_loss_group_size=group_size
    )
    context: Any = SimpleNamespace(cfg=SimpleNamespace(precision="fp32", seed=0))

    class Fixed(nn.Module):
        def forward(self, _images: Tensor, _padding: Tensor) -> tuple[Tensor, Tensor]:
            return logits, boxes

    task = DetrTask(Fixed(), Fixed(), None, protocol, context, 1)  # type: ignore[arg-type]
    found = task.forward((torch.zeros(4, 3, 8, 8), torch.zeros(4, 8, 8, dtype=torch.bool), targets), 0)
    torch.testing.assert_close(found.loss, expected)


def test_dropout_goes_on_after_a_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Dropout(0.5))

    def validated(*_: object) -> dict[str, float]:
        net.eval()
        return {"ap": 12.5}

    monkeypatch.setattr(coco_detr, "validate", validated)
    protocol: Any = SimpleNamespace(validate_every_epochs=2, epochs=3, transforms=None)
    task = DetrTask(net, net, None, protocol, None, 10)  # type: ignore[arg-type]
    assert [task.validate(steps) for steps in (10, 20, 30)] == [{}, {"ap": 12.5}, {"ap": 12.5}]
    assert net[0].training


@pytest.fixture(scope="module")
def on_one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    return outcome(1, tmp_path_factory.mktemp("detr") / "1.pt", "tests.unit.evals.detr_ranks")


@pytest.mark.parametrize("processes", [2, 4])
def test_losses_do_not_depend_on_the_number_of_processes(
    on_one_process: dict[Any, Any], tmp_path: Path, processes: int
) -> None:
    """A group of 4 of the 8 images lies on one rank of two, and on two ranks of four."""
    together = outcome(processes, tmp_path / "out.pt", "tests.unit.evals.detr_ranks")
    assert on_one_process.keys() == {None, 4, 2}
    torch.testing.assert_close(together, on_one_process)


def test_groups_that_no_processes_form_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert class_loss_groups(64, 4) == (16, 1)
    with pytest.raises(
        UserError, match=r"protocol\.class_loss_group_size 4 can't be formed by 1 processes of 6 images"
    ):
        class_loss_groups(6, 4)


def test_the_class_loss_is_grouped_at_scale_paper_only() -> None:
    """4 images are a GPU of the authors'. At the other scales the key is null, and no part of a run's name."""
    by_scale = {scale: identity(compose("evaluate", ["eval=coco_detr", "checkpoint=x", f"scale={scale}"]))["protocol"]
                for scale in ("paper", "lite", "smoke")}  # fmt: skip
    assert by_scale["paper"]["class_loss_group_size"] == 4
    assert not any("class_loss_group_size" in by_scale[scale] for scale in ("lite", "smoke"))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_frozen_batchnorm_keeps_the_dtype_of_autocast(ours: Detr, precision: str) -> None:
    """The one of torchvision promotes to fp32, and the trunk's activations would take twice their memory."""
    dtypes = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: dtypes.update({name: out.dtype}))
        for name, module in ours.backbone.named_modules()
        if isinstance(module, FrozenBatchNorm2d | nn.Conv2d | nn.ReLU)
    ]
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), autocast(precision, "cpu"):
        found = ours.backbone(images)
    for hook in hooks:
        hook.remove()
    assert len(dtypes) > 100 and set(dtypes.values()) == {AUTOCAST[precision]}
    with torch.no_grad():
        expected = ours.backbone(images)
    # 53 layers, each rounded to 8 bits (bf16): some percent of the feature map's own spread.
    assert (found - expected).std() < 0.1 * expected.std()


def test_bf16_takes_less_memory_than_fp32() -> None:
    config = to_dataclass(
        compose("evaluate", ["eval=coco_detr", "scale=paper", "checkpoint=x"]).protocol, ProtocolConfig, "protocol"
    )
    fp32, bf16 = (estimate_memory(config, 16, precision) for precision in ("fp32", "bf16"))
    assert bf16.activations_gb < 0.7 * fp32.activations_gb


def test_boxes_that_are_not_finite_raise_training_failed() -> None:
    logits, boxes, targets = a_case(0, [2])
    boxes[0, 0, 1] = math.nan
    with pytest.raises(TrainingFailed, match=r"not finite: lower protocol\.lr"):
        losses(logits, boxes, targets, WEIGHTS)


def test_every_layer_and_every_trained_parameter_has_a_gradient() -> None:
    torch.manual_seed(0)
    net = Detr(ResNet(0.0625), SIZE, num_classes=5)
    batch = (torch.randn(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.bool), a_case(0, [2])[2])
    batch = (*batch[:2], [Target(target.labels, target.boxes.float()) for target in batch[2]])
    first, again, other = (detr_loss(net, batch, WEIGHTS, (0, step)) for step in (3, 3, 4))
    assert first == again != other  # dropout is the step's
    first.backward()
    for name, value in net.named_parameters():
        assert (value.grad is not None) == value.requires_grad, name


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_dropout_of_a_layer_is_that_of_torchs_transformer(ours: Detr, part: str) -> None:
    """Of attention, of both residual branches and of the hidden units: torch's post-norm layer draws them in order."""
    layer: nn.Module = getattr(ours.transformer, part).layers[1]
    there = nn.TransformerEncoderLayer if part == "encoder" else nn.TransformerDecoderLayer
    oracle = there(32, 4, 48, dropout=0.1, batch_first=True)
    oracle.load_state_dict(layer.state_dict())
    x, memory = torch.randn(2, 2, 9, 32, generator=torch.Generator().manual_seed(0))
    none, padding = torch.zeros(2, 9, 32), torch.zeros(2, 9, dtype=torch.bool)
    more = (none, padding) if part == "encoder" else (none, memory, memory, padding)
    theirs = {"src_key_padding_mask": padding} if part == "encoder" else {"memory": memory}
    layer.train()
    torch.manual_seed(3)
    found = layer(x, *more)
    layer.eval()
    torch.manual_seed(3)
    torch.testing.assert_close(found, oracle(x, **theirs))
    assert (found - layer(x, *more)).abs().max() > 0.1


def test_frozen_batchnorm_equals_the_one_that_it_replaces() -> None:
    """Its epsilon, too, beside which a channel of the trunk may hardly vary."""
    norm = nn.BatchNorm2d(3, eps=1e-3).eval()
    for tensor, values in (
        *((norm.weight, (1.0, 2.0, 3.0)), (norm.bias, (0.1, 0.2, 0.3))),
        *((norm.running_mean, (0.0, 1.0, -1.0)), (norm.running_var, (0.0, 1e-3, 2.0))),
    ):
        assert tensor is not None
        tensor.data.copy_(torch.tensor(values))
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = norm(x)
    net = nn.Sequential(norm)
    freeze_batchnorm(net)
    assert isinstance(net[0], FrozenBatchNorm2d)
    torch.testing.assert_close(net(x), expected)


def test_detections_are_in_pixels_and_never_of_class_no_object() -> None:
    logits = torch.tensor([[0.0, math.log(2), math.log(7)]])  # probabilities .1, .2, .7: no object is likeliest
    (row,) = to_detections(logits, torch.tensor([[0.5, 0.25, 0.2, 0.5]]), width=200, height=100).tolist()
    assert row == pytest.approx([80, 0, 40, 50, 0.2, 1], abs=1e-5)
