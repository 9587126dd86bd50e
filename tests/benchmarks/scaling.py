"""How the cost of a SwAV step grows: `python -m tests.benchmarks.scaling`, on a machine that does nothing else.

Times are those of `reproduce.measure` (steps on noise, without the input pipeline). What ranks send each other is
counted in a step of one process that stands in a process group: as tensors go through the collectives.
"""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn

from models.methods.registry import parse_config
from reproduce.config.compose import compose
from reproduce.config.schema import Crops
from reproduce.config.validate import to_dataclass
from reproduce.files import read_json
from reproduce.network import build_network
from reproduce.system import REPO_ROOT

COMMON = ["experiment=swav_800ep", "scale=paper", "measurement=cost", "cluster.num_threads=1", "logging.wandb=false"]
SMALL, LARGE = "{num: 6, size_px: 96, area: [0.05, 0.14]}", "{num: 2, size_px: 224, area: [0.14, 1.0]}"
VARIANTS: dict[str, tuple[int, list[str]]] = {
    "2x224": (1, [f"crops.views=[{LARGE}]"]),
    "2x224+2x96": (1, [f"crops.views=[{LARGE},{SMALL.replace('6', '2', 1)}]"]),
    "2x224+4x96": (1, [f"crops.views=[{LARGE},{SMALL.replace('6', '4', 1)}]"]),
    "2x224+6x96, 3000 prototypes, 4 images": (1, []),
    "8 images": (1, ["measurement.images_per_step=8"]),
    "16 images": (1, ["measurement.images_per_step=16"]),
    "300 prototypes": (1, ["method.num_prototypes=300"]),
    "30,000 prototypes": (1, ["method.num_prototypes=30000"]),
    "100,000 prototypes": (1, ["method.num_prototypes=100000"]),
    "queue of 3840": (1, ["method.queue_length=3840", "method.queue_start_epochs=0"]),
    "1 rank, quarter width": (1, ["network.width=0.25"]),
    "2 ranks, quarter width": (2, ["network.width=0.25"]),
    "4 ranks, quarter width": (4, ["network.width=0.25"]),
}
RECIPES = ("swav_400ep_2x224", "swav_800ep", "swav_400ep_prototypes100000", "swav_w2_400ep", "swav_w5_400ep")
GROUP_IMAGES = 2


def seconds_per_image(processes: int, overrides: list[str]) -> float:
    """Of one process, the median over a few steps."""
    with tempfile.TemporaryDirectory() as results:
        start = ["reproduce.engine.distributed.launch", f"--nproc-per-node={processes}"] if processes > 1 else []
        words = ["-m", *start, "reproduce.measure", *COMMON, "measurement.num_steps=4", *overrides]
        subprocess.run(
            [sys.executable, *words, f"paths.results={results}"], cwd=REPO_ROOT, check=True, capture_output=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        (result,) = Path(results).glob("*/*/result.json")
        return float(read_json(result)["metrics"]["seconds_per_image"])


def sent(experiment: str) -> Counter[str]:
    """Bytes and number of the tensors that one step hands to collectives, by what for."""
    cfg = compose("pretrain", [f"experiment={experiment}", "scale=paper", "paths.data_root=none"])
    config, build = parse_config(cfg.method)
    net = build_network(cfg, config)
    method = build(config, net, 1_281_167, GROUP_IMAGES)
    sizes = [view.size_px for view in to_dataclass(cfg.crops, Crops, "crops").views for _ in range(view.num)]
    counts: Counter[str] = Counter()

    def of_batchnorm(module: nn.Module, *_: Any) -> None:
        channels = int(module.num_features)  # type: ignore[arg-type]
        counts["BatchNorm MB"] += 4 * (2 * channels + 1 + 2 * channels)  # forward: mean, variance, count; backward: two
        counts["BatchNorm calls"] += 2

    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_hook(of_batchnorm)
    with torch.no_grad():
        embeddings, scores = net([torch.randn(GROUP_IMAGES, 3, size, size) for size in sizes])
    plain = dist.all_reduce

    def counted(tensor: torch.Tensor, *given: Any) -> Any:
        counts["Sinkhorn and curves MB"] += tensor.numel() * tensor.element_size()
        counts["Sinkhorn and curves calls"] += 1
        return plain(tensor, *given)

    with mock.patch.object(dist, "all_reduce", counted):
        method.loss(embeddings, scores, len(sizes), 0)
    counts["gradients MB"] = 4 * sum(p.numel() for p in net.parameters() if p.requires_grad)
    return counts


def lines() -> Iterator[str]:
    """Two Markdown tables."""
    yield "| | ms per image and process | times |"
    yield "|---|--:|--:|"
    first: dict[str, float] = {}
    for name, (processes, overrides) in VARIANTS.items():
        seconds = seconds_per_image(processes, overrides)
        start = first.setdefault("quarter" if "quarter" in name else "whole", seconds)
        yield f"| {name} | {seconds * 1e3:.0f} | {seconds / start:.2f} |"
    yield ""
    heads = ["gradients MB", "BatchNorm MB", "BatchNorm calls", "Sinkhorn and curves MB", "Sinkhorn and curves calls"]
    yield f"| a step of | {' | '.join(heads)} |"
    yield f"|---|{'--:|' * len(heads)}"
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
        for experiment in RECIPES:
            counts = sent(experiment)
            yield f"| {experiment} | {' | '.join(_shown(head, counts[head]) for head in heads)} |"
        dist.destroy_process_group()


def _shown(head: str, value: int) -> str:
    return f"{value / 1e6:.2f}" if head.endswith("MB") else str(value)


if __name__ == "__main__":
    for line in lines():
        print(line, flush=True)
