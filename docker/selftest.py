"""Test an image: import its libraries, and run them if there is a GPU: .venv/bin/python docker/selftest.py cpu|cuda

Part of each build, where there is no GPU. Run it with --preflight once on each new machine: it then also compares the
first steps of every recipe with the recorded ones, which takes minutes. Exit status 1 if a test fails.
"""

import argparse
import importlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

APP = Path(__file__).parents[1]
"""The code in the image, which is not there yet when a build runs the tests."""

MODULES = {
    "cpu": ["torchvision.ops", "sklearn", "wandb", "snakemake"],
    "cuda": ["apex.parallel", "apex_C", "amp_C", "syncbn", "detectron2._C", "detectron2.layers"],
}
"""Modules of each image; the CUDA image also has those of the CPU image."""


def check_close(name: str, computed: torch.Tensor, expected: torch.Tensor) -> None:
    """Raise `AssertionError` if a GPU computes something else (fp32 sums in another order differ by 1e-5)."""
    torch.testing.assert_close(computed.cpu(), expected, rtol=1e-4, atol=1e-5)
    print(f"{name}: ok")


def check_torch() -> None:
    """Check that a convolution and non-maximum suppression give the same as on the CPU."""
    from torchvision.ops import nms

    torch.backends.cudnn.allow_tf32 = False
    images, weights = torch.rand(2, 3, 32, 32), torch.rand(8, 3, 7, 7) / 147
    convolve = torch.nn.functional.conv2d
    check_close("torch", convolve(images.cuda(), weights.cuda()), convolve(images, weights))
    corners = torch.rand(200, 2) * 50
    boxes, scores = torch.cat([corners, corners + 20], dim=1), torch.rand(200)
    check_close("torchvision", nms(boxes.cuda(), scores.cuda(), 0.5), nms(boxes, scores, 0.5))


def check_apex() -> None:
    """Check that apex's SyncBatchNorm over one process equals BatchNorm."""
    from apex.parallel import SyncBatchNorm

    features = torch.randn(16, 8, 4, 4)
    expected = torch.nn.BatchNorm2d(8)(features)
    check_close("apex", SyncBatchNorm(8).cuda()(features.cuda()), expected)


def check_detectron2() -> None:
    """Check that Detectron2's deformable convolution without deformation equals a convolution."""
    from detectron2.layers import DeformConv

    layer = DeformConv(8, 4, kernel_size=3).cuda()
    features, offsets = torch.rand(2, 8, 9, 9), torch.zeros(2, 18, 7, 7)
    expected = torch.nn.functional.conv2d(features, layer.weight.detach().cpu())
    check_close("detectron2", layer(features.cuda(), offsets.cuda()).detach(), expected)


def check_libraries(flavour: str) -> None:
    """Import the libraries of the image `flavour`, cpu or cuda, and run them on the GPU if there is one."""
    names = MODULES["cpu"] + (MODULES["cuda"] if flavour == "cuda" else [])
    for name in names:
        importlib.import_module(name)
    print(f"imported: {', '.join(names)}")
    if not torch.cuda.is_available():
        print("no GPU found: skipped the GPU checks")
        return
    with torch.no_grad():
        check_torch()
        if flavour == "cuda":
            check_apex()
            check_detectron2()


def check_recipes() -> None:
    """Compare the first steps of every recipe with the recorded ones (docs/preflight.md). Exits if one differs."""
    if subprocess.run([sys.executable, "-m", "reproduce", "preflight"], cwd=APP, check=False).returncode:
        sys.exit("error: the preflight failed: see the lines above, and docs/preflight.md")


def main(arguments: Sequence[str] | None = None) -> None:
    """Do the tests that the command line asks for."""
    parser = argparse.ArgumentParser(prog="docker/selftest.py", description="Test an image.")
    parser.add_argument("flavour", choices=list(MODULES))
    parser.add_argument("--preflight", action="store_true", help="also compare every recipe's first steps; minutes")
    options = parser.parse_args(arguments)
    check_libraries(options.flavour)
    if options.preflight:
        check_recipes()


if __name__ == "__main__":
    main()
