"""Networks of Table 2 that are no plain ResNets: their parameters in closed form, and what their passes compute."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import EfficientNet_B7_Weights

from models.networks.amdim import AmdimBlock, AmdimEncoder
from models.networks.architectures import ARCHITECTURES, build_trunk
from models.networks.cmc import CmcPair, normalized_lab, rgb_to_lab
from models.networks.efficientnet import EfficientNetB7
from models.networks.resnet import ResNet
from models.networks.resnet161 import PreActivationBlock
from models.networks.revnet import ReversibleBlock, RevNet, _halved_and_doubled
from reproduce.errors import UserError
from reproduce.harness.spec import tables

WIDTH = 0.0625


def amdim_count(ndf: int, n_rkhs: int, depth: int) -> int:
    stem = (3 * 25 + 1) * ndf + (ndf * 9 + 1) * ndf
    shapes = ((ndf, 2 * ndf, 16), (2 * ndf, 4 * ndf, 16), (4 * ndf, 8 * ndf, 4), *[(8 * ndf, 8 * ndf, 9)] * 2)
    stages = sum(a * b * k + b * b + (depth - 1) * 2 * b * b for a, b, k in shapes)
    return stem + stages + 8 * ndf * n_rkhs * 9 + n_rkhs**2 + 2 * n_rkhs


def revnet_count(width: int) -> int:
    halves = [128 * width * 2**stage for stage in range(4)]
    branch = [2 * h * (h // 4) + 9 * (h // 4) ** 2 + 2 * (h + h // 4 + h // 4) for h in halves]
    blocks = sum(number * each for number, each in zip((3, 4, 6, 3), branch, strict=True))
    return 3 * 49 * 256 * width + blocks + 2 * 2048 * width


def resnet_count(in_channels: int, width: int, stem: int) -> int:
    count, channels = in_channels * 49 * stem + 2 * stem, stem
    for stage, num_blocks in enumerate((3, 4, 6, 3)):
        middle = 64 * width * 2**stage
        for block in range(num_blocks):
            norms = 2 * (middle + middle + 4 * middle)
            count += channels * middle + 9 * middle**2 + 4 * middle**2 + norms
            count += (channels * 4 * middle + 8 * middle) if block == 0 else 0
            channels = 4 * middle
    return count


def resnet161_count() -> int:
    count, channels = 3 * 49 * 64, 64
    for num_blocks, middle, out in ((3, 64, 256), (4, 128, 512), (46, 512, 4096)):
        for _ in range(num_blocks):
            count += channels * middle + 9 * middle**2 + middle * out + 2 * (channels + 2 * middle)
            count += channels * out if channels != out else 0
            channels = out
    return count + 2 * channels


COUNTS = {
    "amdim": amdim_count(320, 2560, 10),
    "cmc": resnet_count(1, 2, 64) + resnet_count(2, 2, 64),
    "efficientnet_b7": EfficientNet_B7_Weights.IMAGENET1K_V1.meta["num_params"],
    "resnet161": resnet161_count(),
    "revnet50_w4": revnet_count(4),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters_have_a_closed_form(name: str) -> None:
    with torch.device("meta"):
        net = build_trunk(name, 2)  # CMC's pair alone has widths
    assert sum(weight.numel() for weight in net.parameters()) == COUNTS[name]


def test_counts_of_table_2_are_those_printed_but_cpcs() -> None:
    """Printed in whole millions. CPC v2's description does not determine the last million."""
    rows = tables.load("table2", "paper").rows
    printed = {row.architecture or row.method.lower(): row.cells["params_millions"] for row in rows}
    off = {name: count / 1e6 - float(printed[name] or 0) for name, count in COUNTS.items()}
    assert [name for name, difference in off.items() if abs(difference) > 0.5] == ["resnet161"]
    assert off["resnet161"] == pytest.approx(-1.36, abs=0.01)


@pytest.mark.parametrize(
    ("name", "size_px"), [("amdim", 128), ("efficientnet_b7", 64), ("resnet161", 64), ("revnet50_w4", 64)]
)
def test_features_are_pooled(name: str, size_px: int) -> None:
    with torch.device("meta"):
        net = build_trunk(name, 1).eval()
        assert net(torch.empty(2, 3, size_px, size_px)).shape == (2, net.num_features)


def test_no_name_is_a_resnet_and_an_unknown_one_raises() -> None:
    assert isinstance(build_trunk(None, WIDTH), ResNet)
    with pytest.raises(UserError, match=r"unknown network\.architecture 'revnet50'.*revnet50_w4"):
        build_trunk("revnet50", 1)


def test_efficientnet_has_torchvisions_tensors_and_layers_161_as_many_convolutions_as_its_name_says() -> None:
    with torch.device("meta"):
        efficient, deep = EfficientNetB7(), build_trunk("resnet161", 1)
    assert efficient.classifier[-1].out_features == 1000 and "features.0.0.weight" in efficient.state_dict()
    layers = [name for name, each in deep.named_modules() if isinstance(each, nn.Conv2d) and "shortcut" not in name]
    assert len(layers) + 1 == 161  # the classifier is a layer, too


def test_a_reversible_block_can_be_inverted() -> None:
    block = ReversibleBlock(8).double().eval()
    x = torch.randn(2, 16, 5, 5, dtype=torch.float64)
    second, sum_of_first = block(x).chunk(2, dim=1)
    torch.testing.assert_close(torch.cat([sum_of_first - block.branch(second), second], dim=1), x)


@pytest.mark.parametrize("side", [4, 5])
def test_a_stage_starts_with_averages_between_zero_channels(side: int) -> None:
    """TensorFlow's SAME padding: the last average of an odd side is of the pixels that are there."""
    x = torch.randn(1, 4, side, side)
    found = _halved_and_doubled(x)
    assert found.shape == (1, 8, (side + 1) // 2, (side + 1) // 2)
    assert not found[:, :2].any() and not found[:, 6:].any()
    for row in range(found.shape[2]):
        for column in range(found.shape[3]):
            window = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            torch.testing.assert_close(found[:, 2:6, row, column], window.mean(dim=(2, 3)))


def test_revnet_pools_with_zeros_around_what_no_relu_has_passed() -> None:
    net = RevNet(WIDTH).eval()
    seen: list[Tensor] = []
    net.stages[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        net.stem.weight.copy_(-net.stem.weight.abs())
        net(torch.rand(1, 3, 32, 32))
    (pooled,) = seen
    assert not pooled[:, :, 0].any() and not pooled[:, :, :, 0].any()  # zero is the largest there
    assert (pooled[:, :, 1:, 1:] < 0).all()


def test_amdims_shortcut_averages_and_leaves_new_channels_zero() -> None:
    block = AmdimBlock(4, 6, kernel_size=2, stride=2)
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(1, 4, 6, 6)
    found = block(x)
    torch.testing.assert_close(found[:, :4], F.avg_pool2d(x, 2))
    assert not found[:, 4:].any()


def test_amdim_sees_128_pixels_as_one() -> None:
    net = AmdimEncoder(4, 32, 2).eval()
    assert net.stages(net.stem(torch.randn(1, 3, 128, 128))).shape == (1, 32, 1, 1)


def test_a_layer_norm_sees_channels_and_pixels_of_one_image() -> None:
    block = PreActivationBlock(8, 4, 8, stride=1)
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(block.norm1(x), F.layer_norm(x, x.shape[1:]))
    torch.testing.assert_close(block(x)[:1], block(x[:1]))


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((0, 0, 0), (0, 0, 0)),
        ((1, 1, 1), (100, 0, 0)),
        ((0.5, 0.5, 0.5), (53.389, 0, 0)),
        ((1, 0, 0), (53.241, 80.092, 67.203)),
        ((0, 1, 0), (87.735, -86.183, 83.179)),
        ((0, 0, 1), (32.297, 79.188, -107.860)),
    ],
)
def test_lab_of_known_colors(rgb: tuple[float, ...], lab: tuple[float, ...]) -> None:
    """CIE's values of sRGB's corners under D65, which any converter prints."""
    pixel = torch.tensor(rgb, dtype=torch.float64).view(1, 3, 1, 1)
    torch.testing.assert_close(rgb_to_lab(pixel).flatten(), torch.tensor(lab, dtype=torch.float64), rtol=0, atol=0.02)


def test_all_colors_are_normalized_to_at_most_one() -> None:
    steps = torch.linspace(0, 1, 18)
    colors = torch.cartesian_prod(steps, steps, steps).T.reshape(1, 3, 18, -1)
    found = normalized_lab(colors)
    assert -1.001 < found.amin() < -0.99 and 0.99 < found.amax() < 1.001
    assert normalized_lab(colors.bfloat16()).dtype == torch.float32


def test_cmcs_networks_see_lightness_and_colors_of_images_however_they_were_normalized() -> None:
    torch.manual_seed(0)
    net = CmcPair(WIDTH, (1, 1, 1, 1)).double().eval()
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    features = net(images)
    lightness, colors = features.chunk(2, dim=1)
    gray = images.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    # Grays have no color, but for the rounding of the published matrix.
    torch.testing.assert_close(net.views(gray)[1][0], net.views(gray)[1][1], rtol=0, atol=1e-4)
    assert not torch.allclose(net.views(gray)[0][0], net.views(gray)[0][1])
    torch.testing.assert_close(net.l_to_ab(normalized_lab(images)[:, :1]), lightness)
    torch.testing.assert_close(net.ab_to_l(normalized_lab(images)[:, 1:]), colors)
    mean, std = [0.485, 0.456, 0.406], [0.228, 0.224, 0.225]
    net.set_normalization(mean, std)
    normalized = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(net(normalized), features, rtol=1e-5, atol=1e-6)
    assert not {"mean", "std"} & net.state_dict().keys()
