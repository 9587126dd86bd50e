"""DETR finetuned on COCO from a trunk (B.4, Table 5; Table 3's last column)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from evals.coco_detr.detector import Detr, Size
from evals.coco_detr.losses import Target, Weights, corners, losses
from evals.coco_detr.score import average_precision, shown
from evals.coco_detr.views import Views, test_pictures, training_batches
from evals.setting import Setting, train_network
from models.networks.resnet import ResNet
from reproduce.data.datasets.coco import CocoSplit, annotation_path, read_coco_split
from reproduce.data.datasets.image_folder import ImageList
from reproduce.engine.distributed.collectives import all_reduce_sum, device, is_main, rank, world_size
from reproduce.engine.precision import autocast
from reproduce.engine.runs.detection_examples import write_examples
from reproduce.errors import UserError


@dataclass
class Protocol:
    """conf/eval/coco_detr.yaml.

    Learning rates, `lr_backbone` that of the trunk, are for `lr_batch_size`; another `batch_size` scales them in
    proportion. After `drop_epochs` they are multiplied by `lr_factor`. Average precision is taken every
    `judge_every_epochs`, and after the last.
    """

    name: str
    epochs: int
    batch_size: int
    lr_batch_size: int
    lr: float
    lr_backbone: float
    lr_factor: float
    drop_epochs: int
    weight_decay: float
    clip_norm: float
    judge_every_epochs: int
    detector: Size
    weights: Weights
    views: Views


def evaluate(trunk: ResNet, protocol: Protocol, setting: Setting) -> dict[str, float]:
    """Finetune the detector, and give COCO's average precision in percent after the last epoch (`score.METRICS`)."""
    train, val = (
        read_coco_split(setting.root, split, setting.dataset.source, setting.on_broken)
        for split in (setting.dataset.train, setting.dataset.val)
    )
    if train.category_names != val.category_names:
        files = [str(annotation_path(setting.root, split)) for split in (setting.dataset.train, setting.dataset.val)]
        raise UserError(f"{files[0]} and {files[1]} name different categories: one number would mean two classes")
    for split, found in ((setting.dataset.train, train), (setting.dataset.val, val)):
        setting.quote(split, ImageList([picture.path for picture in found.images], [0] * len(found.images), []))
    setting.provenance["annotations_sha256"] = {"train": train.sha256, "val": val.sha256}
    setting.counts["num_train_images"] = len(train.images)
    torch.manual_seed(setting.seed)
    net = Detr(trunk, protocol.detector, train.num_classes).to(device())
    scale = setting.lr_scale(protocol.batch_size, protocol.lr_batch_size)
    metrics: dict[str, float] = {}

    def judge(epoch: int) -> dict[str, float]:
        if epoch % protocol.judge_every_epochs and epoch < protocol.epochs:
            return {}
        metrics.update(score(net, val, protocol.views, setting))
        return metrics

    train_network(
        net,
        {"model": net},
        optimizer(net, protocol),
        lambda epoch: [rate * scale for rate in learning_rates(protocol, epoch)],
        lambda sampler: training_batches(
            train.images,
            protocol.views,
            setting.normalize,
            sampler,
            num_workers=setting.num_workers,
            device=device(),
            on_unreadable=setting.on_unreadable,
        ),
        lambda trained, batch, step: loss(trained, batch, protocol.weights, (setting.seed, step)),
        judge,
        num_images=len(train.images),
        epochs=protocol.epochs,
        batch_size=protocol.batch_size,
        setting=setting,
        clip_norm=protocol.clip_norm,
    )
    # A run that was killed between its last checkpoint and its result has trained, but not judged.
    return metrics or score(net, val, protocol.views, setting)


def optimizer(net: Detr, protocol: Protocol) -> torch.optim.Optimizer:
    """AdamW with the trunk's parameters, as far as they train, in a group of their own, the second."""
    of_trunk = [value for value in net.backbone.parameters() if value.requires_grad]
    others = [value for name, value in net.named_parameters() if not name.startswith("backbone.")]
    return torch.optim.AdamW(
        [{"params": others}, {"params": of_trunk}], protocol.lr, weight_decay=protocol.weight_decay
    )


def learning_rates(protocol: Protocol, epoch: int) -> list[float]:
    """The epoch's learning rates of the transformer with its heads, and of the trunk."""
    factor = protocol.lr_factor if epoch >= protocol.drop_epochs else 1
    return [lr * factor for lr in (protocol.lr, protocol.lr_backbone)]


def loss(
    net: nn.Module, batch: tuple[Tensor, Tensor, list[Target]], weights: Weights, drawn_from: tuple[int, int]
) -> Tensor:
    """The sum of all decoder layers' losses on a batch of images, padding and targets.

    Dropout is drawn anew from `drawn_from`, seed, step and rank: a run resumed by as many processes draws
    the same.
    """
    torch.manual_seed(int(np.random.SeedSequence([*drawn_from, rank()]).generate_state(1, np.uint64)[0]))
    images, padding, targets = batch
    logits, boxes = net(images, padding)
    with torch.autocast(images.device.type, enabled=False):
        logits, boxes = (tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in (logits, boxes))
        return losses(logits, boxes, targets, weights).sum()


@torch.no_grad()
def score(net: Detr, val: CocoSplit, views: Views, setting: Setting) -> dict[str, float]:
    """Average precision on a split, which the ranks share. A collective; leaves `net` in eval mode."""
    net.eval()
    share = range(rank(), len(val.images), world_size())
    num_queries = net.query_embed.num_embeddings
    found = torch.zeros(len(val.images), num_queries, 6, dtype=torch.float64, device=device())
    seen = torch.zeros(len(val.images), device=device())
    pictures = test_pictures(
        [val.images[number] for number in share],
        views,
        setting.normalize,
        num_workers=setting.num_workers,
        device=device(),
        on_unreadable=setting.on_unreadable,
    )
    for number, image, padding in pictures:
        with autocast(setting.precision):
            logits, boxes = net(image, padding)
        about = val.images[share[number]]
        found[share[number]] = detected(logits[-1, 0], boxes[-1, 0], about.width, about.height)
        seen[share[number]] = 1
    all_reduce_sum(found)
    all_reduce_sum(seen)
    known = seen.bool().tolist()
    ids = np.array([picture.id for picture in val.images])[known]
    if not len(ids):
        raise UserError(
            f"none of the {len(val.images)} pictures of {setting.root / setting.dataset.val} can be decoded"
        )
    setting.counts["num_test_images"] = len(ids)
    rows = found[seen.bool()].flatten(0, 1).cpu().numpy()
    detections = np.column_stack([np.repeat(ids, num_queries), rows])
    if is_main():
        write_examples(setting.checkpoint.parent, shown(val, ids.tolist(), detections))
    return average_precision(val.ground_truth, detections, ids.tolist())


def detected(logits: Tensor, boxes: Tensor, width: int, height: int) -> Tensor:
    """What the queries of one picture found: `(Q, 6)` float64, left, top, width, height in pixels, score, class.

    The class is the likeliest that is an object, the score its probability.
    """
    scores, labels = logits.double().softmax(-1)[:, :-1].max(-1)
    x = corners(boxes.double()) * boxes.new_tensor([width, height, width, height]).double()
    return torch.cat([x[:, :2], x[:, 2:] - x[:, :2], scores[:, None], labels[:, None].double()], dim=1)
