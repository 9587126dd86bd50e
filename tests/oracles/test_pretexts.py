"""RotNet, PCL, Local Aggregation and BoWNet: losses, clusters and recipes beside their authors' code."""

import argparse
import ast
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml
from sklearn.cluster import KMeans
from torch import nn
from torch._C._distributed_c10d import HashStore

from models.methods.bownet import bag_of_words
from models.methods.kmeans import nearest_rows
from models.methods.local_aggregation import LocalAggregation, LocalAggregationConfig
from models.methods.memory_bank import nce_loss
from models.methods.pcl import Pcl, PclConfig
from models.methods.rotnet import NUM_ROTATIONS, Rotnet, RotnetConfig, four_rotations
from models.methods.supervised import ClassifierNet
from models.networks.heads import MultiCropNet
from reproduce.config.compose import compose
from reproduce.config.schema import Optimizer
from reproduce.config.validate import to_dataclass
from reproduce.data.pipeline.sampler import StepSampler
from reproduce.engine.schedule import learning_rate
from tests.networks import gradients_of
from tests.oracles.methods_ranks import DIM, WIDTH, Encoder, as_ours
from tests.oracles.official import checkout, definitions, module

STEPS_PER_EPOCH = 1_281_167 // 256
NUM_IMAGES, BATCH = 60, 6


@pytest.fixture
def alone_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of this process alone, on the CPU, where the official code calls `.cuda()` everywhere."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self, *_, **__: self)
    torch.set_default_dtype(torch.float64)
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    torch.set_default_dtype(torch.float32)


def options(script: Path, **namespace: Any) -> dict[str, Any]:
    """The default values of a script's command line."""
    body = [
        node for node in ast.parse(script.read_text()).body if ast.unparse(node).startswith(("parser = ", "parser."))
    ]
    code: dict[str, Any] = {"argparse": argparse, **namespace}
    exec(compile(ast.Module(body, []), str(script), "exec"), code)
    return vars(code["parser"].parse_args(["images"]))


def test_rotnets_rotations_are_equal() -> None:
    code = definitions(checkout("rotnet", "dataloader.py") / "dataloader.py", "rotate_img", np=np)
    images = np.random.default_rng(0).integers(0, 256, (3, 9, 9, 3), np.uint8)
    ours = four_rotations(torch.from_numpy(images).permute(0, 3, 1, 2))
    for turned, degrees in zip(ours, (0, 90, 180, 270), strict=True):
        theirs = np.stack([code["rotate_img"](image, degrees) for image in images])
        assert np.array_equal(turned.permute(0, 2, 3, 1).numpy(), theirs)


def test_rotnets_loss_and_gradients_are_equal() -> None:
    """Its loader stacks the rotations image by image, with labels 0 to 3, for torch's cross-entropy."""
    code = definitions(checkout("rotnet", "dataloader.py") / "dataloader.py", "rotate_img", np=np)
    torch.manual_seed(0)
    net = ClassifierNet(0.0625, NUM_ROTATIONS, blocks=(1, 1, 1, 1)).double()
    images = np.random.default_rng(1).standard_normal((4, 40, 40, 3))
    turned = [code["rotate_img"](image, degrees).copy() for image in images for degrees in (0, 90, 180, 270)]
    _, logits = net([torch.from_numpy(np.stack(turned)).permute(0, 3, 1, 2)])
    theirs = F.cross_entropy(logits, torch.arange(4).repeat(4))
    theirs.backward()
    gradients = gradients_of(net)
    net.zero_grad()
    method = Rotnet(RotnetConfig("rotnet"), net, 4, 4)
    crops = method.before_step(0, [torch.from_numpy(images).permute(0, 3, 1, 2)], torch.zeros(0))
    features, logits = net(crops)
    ours, _ = method.loss(features, logits, len(crops), 0)
    ours.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients_of(net), gradients, rtol=1e-9, atol=1e-12)


def test_rotnets_learning_rates_are_those_of_vissls_resnet() -> None:
    name = "configs/config/pretrain/rotnet/rotnet_8gpu_resnet.yaml"
    theirs = yaml.safe_load((checkout("vissl", name) / name).read_text())["config"]["OPTIMIZER"]
    schedule = theirs["param_schedulers"]["lr"]
    assert schedule["auto_lr_scaling"] == {"auto_scale": True, "base_value": 0.1, "base_lr_batch_size": 256}
    cfg = compose("pretrain", ["experiment=rotnet_105ep", "scale=paper"])
    optimizer = to_dataclass(cfg.optimizer, Optimizer, "optimizer")
    values = (cfg.epochs, cfg.batch_size, optimizer.weight_decay, optimizer.momentum)
    assert values == (theirs["num_epochs"], 256, theirs["weight_decay"], theirs["momentum"])
    for epoch in range(cfg.epochs):
        expected = schedule["values"][sum(epoch >= start for start in schedule["milestones"])]
        found = learning_rate(epoch * STEPS_PER_EPOCH, cfg.epochs * STEPS_PER_EPOCH, cfg.epochs, optimizer)
        assert found == pytest.approx(expected, rel=1e-9)


def pcl() -> Pcl:
    """Our method, whose first epoch already has clusters."""
    torch.manual_seed(0)
    net = MultiCropNet(WIDTH, None, DIM, blocks=(1, 1, 1, 1))
    config = PclConfig("pcl", 3 * BATCH, 0.9, 0.2, [40, 30], 3 * BATCH, 0, 20, 5, 40, 40)
    method = Pcl(config, net, NUM_IMAGES, BATCH)
    images = torch.randn(NUM_IMAGES, 3, 40, 40)
    method.center_crops = lambda _resize_px, _size_px: [(torch.arange(NUM_IMAGES), images)]
    method.on_train_start(net, StepSampler(NUM_IMAGES, BATCH, 1, seed=3), [])
    return method


@pytest.mark.usefixtures("alone_in_double_precision")
def test_pcls_losses_and_queue_are_equal() -> None:
    """Steps without an optimizer. Theirs has our negatives: Python samples no set any more."""
    builder: Any = module(checkout("pcl", "pcl/builder.py") / "pcl/builder.py")
    ours = pcl()
    theirs = builder.MoCo(Encoder, DIM, 3 * BATCH, 0.9, 0.2, mlp=False)
    ours.net.load_state_dict(as_ours(theirs.encoder_q))
    ours.key_encoder.load_state_dict(as_ours(theirs.encoder_k))
    ours.queue.copy_(theirs.queue.T)
    criterion = nn.CrossEntropyLoss()
    for step in range(4):
        crops = [torch.randn(BATCH, 3, 40, 40) for _ in range(2)]
        queries = ours.before_step(step, crops, torch.zeros(0))
        images = torch.from_numpy(ours.sampler.batch_at(step))
        drawn = [
            ours._draw_negatives(each, images, (step, level)).tolist() for level, each in enumerate(ours.clusterings)
        ]
        remaining = iter(drawn)

        def sample(candidates: set[int], num: int, remaining: Iterator[list[int]] = remaining) -> list[int]:
            found = next(remaining)
            assert len(found) == num and set(found) <= candidates
            return found

        builder.sample = sample
        clusters = {
            "im2cluster": [each.labels for each in ours.clusterings],
            "centroids": [each.centroids for each in ours.clusterings],
            "density": [each.temperatures for each in ours.clusterings],
        }
        logits, labels, proto_logits, proto_labels = theirs(crops[0], crops[1], cluster_result=clusters, index=images)
        proto = sum(criterion(*pair) for pair in zip(proto_logits, proto_labels, strict=True)) / 2
        loss, watched = ours.loss(ours.net(queries)[0], None, 1, step)
        ours.after_backward(step)
        torch.testing.assert_close(watched["prototype_loss"], proto.detach(), rtol=1e-10, atol=0)
        torch.testing.assert_close(loss, criterion(logits, labels) + proto, rtol=1e-10, atol=0)
        torch.testing.assert_close(ours.queue, theirs.queue.T)


class Lloyd:
    """Stands in for faiss's `Clustering`: scikit-learn's k-means, from the random rows that ours starts from."""

    nredo = 1
    seed: int
    niter: int

    def __init__(self, _dim: int, num_clusters: int) -> None:
        self.num_clusters = num_clusters

    def train(self, rows: np.ndarray, index: SimpleNamespace) -> None:
        starts = [
            np.random.default_rng((3, 0, self.seed, restart)).permutation(len(rows))[: self.num_clusters]
            for restart in range(self.nredo)
        ]
        fits = [
            KMeans(self.num_clusters, init=rows[at], n_init=1, max_iter=self.niter, tol=0).fit(rows) for at in starts
        ]
        self.obj = None
        best = min(fits, key=lambda fit: fit.inertia_)
        self.centroids = best.cluster_centers_
        index.search = lambda rows, _: (best.transform(rows).min(1, keepdims=True) ** 2, best.predict(rows)[:, None])


@pytest.mark.usefixtures("alone_in_double_precision")
def test_pcls_clusters_and_temperatures_are_equal() -> None:
    faiss = SimpleNamespace(
        Clustering=Lloyd, StandardGpuResources=lambda: None, GpuIndexFlatConfig=SimpleNamespace,
        GpuIndexFlatL2=lambda *_: SimpleNamespace(), vector_to_array=np.ravel,
    )  # fmt: skip
    script = checkout("pcl", "main_pcl.py") / "main_pcl.py"
    theirs = definitions(script, "run_kmeans", faiss=faiss, np=np, nn=nn, torch=torch)["run_kmeans"]
    ours = pcl()
    rows, known = ours._embed_images()
    assert known.all()
    found = theirs(rows.numpy(), SimpleNamespace(num_cluster=["40", "30"], gpu=0, temperature=0.2))
    for level, number in enumerate((40, 30)):
        clusters = ours._cluster(rows, known, number, (3, 0, level))
        assert torch.equal(clusters.labels, found["im2cluster"][level])
        for name, value in (("centroids", clusters.centroids), ("density", clusters.temperatures)):
            # Theirs pass through single precision.
            torch.testing.assert_close(value, found[name][level].double(), rtol=1e-5, atol=1e-6)


def test_pcls_recipe_is_its_scripts() -> None:
    script = checkout("pcl", "main_pcl.py") / "main_pcl.py"
    theirs = SimpleNamespace(**options(script, model_names=["resnet50"]))
    cfg = compose("pretrain", ["experiment=pcl_v1_200ep", "scale=paper"])
    optimizer, method = to_dataclass(cfg.optimizer, Optimizer, "optimizer"), cfg.method
    assert (cfg.epochs, cfg.batch_size, cfg.network.embedding_dim) == (theirs.epochs, theirs.batch_size, theirs.low_dim)
    assert (method.queue_length, method.num_negative_prototypes) == (theirs.pcl_r, theirs.pcl_r)
    assert (method.momentum, method.temperature) == (theirs.moco_m, theirs.temperature)
    assert method.num_clusters == [int(number) for number in theirs.num_cluster.split(",")]
    assert (method.warmup_epochs, optimizer.weight_decay) == (theirs.warmup_epoch, theirs.weight_decay)
    code = definitions(script, "adjust_learning_rate")
    for epoch in range(cfg.epochs):
        group: dict[str, float] = {}
        code["adjust_learning_rate"](SimpleNamespace(param_groups=[group]), epoch, theirs)
        found = learning_rate(epoch * STEPS_PER_EPOCH, cfg.epochs * STEPS_PER_EPOCH, cfg.epochs, optimizer)
        assert found == pytest.approx(group["lr"], rel=1e-9)


def local_aggregation(num_images: int) -> LocalAggregation:
    """Our method, whose first epoch already has clusters."""
    torch.manual_seed(0)
    net = MultiCropNet(WIDTH, None, DIM, blocks=(1, 1, 1, 1))
    config = LocalAggregationConfig("local_aggregation", 20, 0.07, 0.5, 25, 10, 3, 20, 0)
    method = LocalAggregation(config, net, num_images, BATCH)
    method.on_train_start(net, StepSampler(num_images, BATCH, 1, seed=3), [])
    return method


@pytest.mark.usefixtures("alone_in_double_precision")
@pytest.mark.parametrize("task", ["localagg", "instance"])
def test_local_aggregations_losses_gradients_and_bank_are_equal(monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    """Of both parts of the training, over some steps. Theirs draws our noise, which torch can't draw in that way."""
    root = checkout("local_aggregation", "src/objectives/localagg.py") / "src"
    tools = definitions(root / "utils/tensor.py", "repeat_1d_tensor", "l2_normalize", torch=torch)
    name = {"localagg": "LocalAggregationLossModule", "instance": "InstanceDiscriminationLossModule"}[task]
    official = definitions(root / f"objectives/{task}.py", name, **tools, math=math)[name]
    monkeypatch.setattr(torch.Tensor, "byte", torch.Tensor.bool)  # torch's `where` takes bytes no more
    method = local_aggregation(NUM_IMAGES)
    sizes = {"k": 25 if task == "localagg" else 20, "t": 0.07, "m": 0.5}
    for step in range(4):
        method.before_step(step, [], torch.zeros(0))
        images = torch.from_numpy(method.sampler.indices_at(step))
        theirs = official([method.bank.rows.clone()], [method.labels.clone()], **sizes)
        noise = method.bank.draw((3, step, 0), images.numpy(), 20)[:, 1:].contiguous()
        monkeypatch.setattr(torch, "randint", lambda *_, noise=noise, **__: noise)
        near = method.bank.rows[images] + 0.3 * torch.randn(BATCH, DIM)
        gradients, losses = [], []
        for compute in ("theirs", "ours"):
            outputs = near.clone().requires_grad_()
            if compute == "theirs":
                loss, rows = theirs(images, outputs, 0)
                loss = loss.squeeze(0)
            elif task == "localagg":
                loss, _ = method.loss(F.normalize(outputs, dim=1), None, 1, step)
            else:
                embeddings = F.normalize(outputs, dim=1)
                loss = nce_loss(method.logits(embeddings, step, 0), method.log_z, NUM_IMAGES)
                method.seen = images, embeddings.detach()
            loss.backward()
            losses.append(loss.detach())
            gradients.append(outputs.grad)
        method.after_backward(step)
        # Up to an epsilon of 1e-7: ours has none in instance recognition. In local aggregation theirs divides the close
        # probability of every image by the total of every image, whose mean logarithm is the same but for the epsilon.
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(method.bank.rows[images], rows.detach())


@pytest.mark.usefixtures("alone_in_double_precision")
def test_local_aggregations_clusters_are_equal() -> None:
    faiss = SimpleNamespace(
        Clustering=Lloyd, StandardGpuResources=lambda: None, GpuIndexFlatConfig=SimpleNamespace,
        GpuIndexFlatL2=lambda *_: SimpleNamespace(), vector_to_array=lambda _: [0.0],
    )  # fmt: skip
    name = "src/objectives/localagg.py"
    code = definitions(checkout("local_aggregation", name) / name, "run_kmeans", faiss=faiss, DEFAULT_KMEANS_SEED=0)
    method = local_aggregation(NUM_IMAGES)
    method.before_step(0, [], torch.zeros(0))
    for number, labels in enumerate(method.labels.tolist()):
        assert code["run_kmeans"](method.bank.rows.numpy(), 10, seed=number)[0] == labels


def test_local_aggregations_recipe_is_that_of_its_resnet50() -> None:
    root = checkout("local_aggregation_tensorflow", "exp_configs/la_final.json")
    theirs = json.loads((root / "exp_configs/la_final.json").read_text())["res50_LA"]
    defaults = dict(
        re.findall(r"cfg.add\('(\w+)', type=\w+, default=([\w.-]+)", (root / "param_setter.py").read_text())
    )
    cfg = compose("pretrain", ["experiment=local_aggregation_200ep", "scale=paper"])
    method, steps_per_epoch = cfg.method, 10009
    assert (cfg.batch_size, cfg.optimizer.lr) == (int(defaults["batch_size"]), float(defaults["init_lr"]))
    assert cfg.optimizer.weight_decay == float(defaults["weight_decay"])
    assert (method.num_neighbors, method.num_negatives) == (int(defaults["instance_k"]),) * 2
    assert method.temperature == float(defaults["instance_t"])
    assert [method.num_clusters] * method.num_clusterings == [int(each) for each in theirs["kmeans_k"].split(",")]
    assert cfg.epochs * steps_per_epoch == theirs["train_num_steps"]
    assert method.warmup_epochs == theirs["load_step"] // steps_per_epoch
    drops = [int(each) // steps_per_epoch for each in theirs["lr_boundaries"].split(",")]
    optimizer = to_dataclass(cfg.optimizer, Optimizer, "optimizer")
    for epoch in range(cfg.epochs):
        found = learning_rate(epoch * steps_per_epoch, cfg.epochs * steps_per_epoch, cfg.epochs, optimizer)
        assert found == pytest.approx(0.03 * 0.1 ** sum(epoch >= drop for drop in drops), rel=1e-9)


@pytest.mark.usefixtures("alone_in_double_precision")
def test_bags_of_words_and_their_loss_are_those_of_bownets_authors_next_code() -> None:
    """OBoW's bags of hard assignments, pooled by their maximum, are BoWNet's. Its loss lacks their entropy."""
    root = checkout("obow", "obow/builder_obow.py") / "obow"
    pooling = definitions(root / "utils.py", "global_pooling", F=F)["global_pooling"]
    utils = SimpleNamespace(global_pooling=pooling, reduce_all=lambda value: value, get_world_size=lambda: 1)
    code = definitions(
        root / "builder_obow.py", "BoWExtractor", "OBoW", "expand_target", torch=torch, nn=nn, F=F, utils=utils
    )
    torch.manual_seed(0)
    extractor = code["BoWExtractor"](num_words=20, num_channels=5, inv_delta=None, bow_pool="max").eval()
    maps = torch.randn(4, 5, 7, 7)
    theirs, _ = extractor(maps)
    places = maps[:, :, 1:-1, 1:-1].flatten(2).transpose(1, 2)
    words, _ = nearest_rows(places.flatten(0, 1), extractor.get_dictionary())
    ours = bag_of_words(words.view(4, 25), 20)
    torch.testing.assert_close(ours, theirs)

    gradients, losses = [], []
    for name in ("theirs", "ours"):
        logits = torch.randn(4, 20, generator=torch.Generator().manual_seed(1)).requires_grad_()
        if name == "theirs":
            loss = code["OBoW"]._bow_loss(SimpleNamespace(_num_bow_levels=1), [logits], [theirs])
        else:
            loss = F.cross_entropy(logits, ours)
        loss.backward()
        losses.append(loss.detach())
        gradients.append(logits.grad)
    entropy = -torch.xlogy(ours, ours).sum(dim=1).mean()
    torch.testing.assert_close(losses[1] - entropy, losses[0])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_bownets_recipe_is_that_of_its_authors_next_code() -> None:
    """Its rate changes once per epoch, ours with each step; ours has the schedule twice."""
    root = checkout("obow", "config/ImageNetFull/ResNet50_OBoW_full.yaml")
    theirs = yaml.safe_load((root / "config/ImageNetFull/ResNet50_OBoW_full.yaml").read_text())
    cfg = compose("pretrain", ["experiment=bownet_305ep", "scale=paper"])
    optimizer, rates = to_dataclass(cfg.optimizer, Optimizer, "optimizer"), theirs["optim"]
    first = optimizer.restart_epoch
    assert first is not None and cfg.epochs - first == rates["num_epochs"]
    assert cfg.batch_size == theirs["data"]["batch_size"]
    assert cfg.method.num_words == theirs["model"]["bow_extractor_opts"]["num_words"]
    assert optimizer.weight_decay == rates["weight_decay"]
    code = definitions(root / "obow/solver.py", "compute_cosine_learning_rate", math=math)
    for epoch in range(rates["num_epochs"]):
        expected = code["compute_cosine_learning_rate"](
            epoch, rates["lr"], rates["end_lr"], rates["num_epochs"], rates["warmup_epochs"]
        )
        step = (first + epoch) * STEPS_PER_EPOCH
        found = learning_rate(step, cfg.epochs * STEPS_PER_EPOCH, cfg.epochs, optimizer)
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
