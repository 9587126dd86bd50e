"""Import what the images bring, and run it where there is a GPU: .venv/bin/python docker/selftest.py cpu|cuda

Part of each build (there without a GPU), and to be run once on a new machine. Exit status 1 where something is amiss.
"""

import importlib
import sys

import torch

MODULES = {
    "cpu": ["torchvision.ops", "sklearn", "wandb", "snakemake"],
    "cuda": ["apex.parallel", "apex_C", "amp_C", "syncbn", "detectron2._C", "detectron2.layers"],
}
"""Of each image; the CUDA image has the CPU image's, too."""


def close(name: str, computed: torch.Tensor, expected: torch.Tensor) -> None:
    """Raise `AssertionError` where a GPU's numbers are not the expected ones (fp32 sums in another order: 1e-5)."""
    torch.testing.assert_close(computed.cpu(), expected, rtol=1e-4, atol=1e-5)
    print(f"{name}: computes what it should")


def run_torch() -> None:
    """A convolution, and the operators of detection, as on the CPU."""
    from torchvision.ops import nms

    torch.backends.cudnn.allow_tf32 = False
    pictures, weights = torch.rand(2, 3, 32, 32), torch.rand(8, 3, 7, 7) / 147
    convolve = torch.nn.functional.conv2d
    close("torch", convolve(pictures.cuda(), weights.cuda()), convolve(pictures, weights))
    corners = torch.rand(200, 2) * 50
    boxes, scores = torch.cat([corners, corners + 20], dim=1), torch.rand(200)
    close("torchvision", nms(boxes.cuda(), scores.cuda(), 0.5), nms(boxes, scores, 0.5))


def run_apex() -> None:
    """Its SyncBatchNorm over one process is BatchNorm."""
    from apex.parallel import SyncBatchNorm

    features = torch.randn(16, 8, 4, 4)
    expected = torch.nn.BatchNorm2d(8)(features)
    close("apex", SyncBatchNorm(8).cuda()(features.cuda()), expected)


def run_detectron2() -> None:
    """Its CUDA deformable convolution with no deformation is a convolution."""
    from detectron2.layers import DeformConv

    layer = DeformConv(8, 4, kernel_size=3).cuda()
    features, offsets = torch.rand(2, 8, 9, 9), torch.zeros(2, 18, 7, 7)
    expected = torch.nn.functional.conv2d(features, layer.weight.detach().cpu())
    close("detectron2", layer(features.cuda(), offsets.cuda()).detach(), expected)


def main(flavour: str) -> None:
    """Test one image's flavour."""
    names = MODULES["cpu"] + (MODULES["cuda"] if flavour == "cuda" else [])
    for name in names:
        importlib.import_module(name)
    print(f"imported: {', '.join(names)}")
    if not torch.cuda.is_available():
        print("no GPU here: nothing was run on one")
        return
    with torch.no_grad():
        run_torch()
        if flavour == "cuda":
            run_apex()
            run_detectron2()


if __name__ == "__main__":
    if sys.argv[1:] not in (["cpu"], ["cuda"]):
        sys.exit("error: say which image: docker/selftest.py cpu|cuda")
    main(sys.argv[1])
