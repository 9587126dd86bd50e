"""The README of exported weights: how they load, how they were made, what was measured of them, and their licence."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from models.zoo.entries import ReleasedWeights
from reproduce.files import read_json
from reproduce.harness.report.rendering import markdown_row
from reproduce.harness.report.summary import WrittenVerdicts

RECIPE = ("epochs", "batch_size", "precision", "seed")
R50 = {"width": 1, "blocks": [3, 4, 6, 3], "stem": "7x7"}


def of_run(
    config: Mapping[str, Any],
    made: Mapping[str, Any],
    folder: Path,
    shape: Mapping[str, Any],
    verdicts: WrittenVerdicts,
) -> str:
    """Return the card of a pretraining's trunk, given its config, its result and its folder.

    `shape` is what `reproduce.export` wrote of it.
    """
    dataset = config["dataset"]
    recipe = {"method": config["method"]["name"], "crops": config["crops"]["name"]}
    recipe |= {key: config[key] for key in RECIPE}
    recipe |= {f"optimizer.{key}": value for key, value in config["optimizer"].items() if value is not None}
    recipe |= {f"normalize.{key}": config["normalize"][key] for key in ("mean", "std")}
    measured = list(_measured(folder, made, verdicts))
    lines = [
        *_opening(f"{made['name']}, seed {made['seed']}, scale {made['scale']}", shape),
        "## Recipe",
        *(f"- {key}: {value}" for key, value in recipe.items()),
        f"- trained on {dataset['source']} ({dataset['name']}, split {dataset['train']})",
        f"- by commit {made['provenance']['git_commit']}",
        "- every value: `config.yaml` beside this folder",
        "",
        "## Measured",
        *(measured or ["Nothing has been evaluated on these weights yet."]),
        "",
        "## Licence",
        f"What the terms of the images allow: check those of {dataset['source']}. The code has its own licence.",
    ]
    return "\n".join(lines) + "\n"


def of_released(entry: ReleasedWeights, shape: Mapping[str, Any]) -> str:
    """Return the card of public weights, which are their authors'."""
    lines = [
        *_opening(f"released:{entry.name}, by its authors", shape),
        "## Origin",
        f"- from {entry.url}",
        f"- images are normalized as `reproduce/conf/normalize/{entry.normalize}.yaml` of the repository has it",
        *([f"- {entry.note}"] if entry.note else []),
        "",
        "## Licence",
        entry.license or "Their authors state none.",
    ]
    return "\n".join(lines) + "\n"


def of_file(checkpoint: str, shape: Mapping[str, Any]) -> str:
    """Return the card of a file of which nothing else is known."""
    return (
        "\n".join(
            [*_opening(checkpoint, shape), "How these weights were made, and for which normalization, is not known."]
        )
        + "\n"
    )


def _opening(title: str, shape: Mapping[str, Any]) -> Iterator[str]:
    yield from (
        "---",
        "library_name: pytorch",
        "tags: [image-feature-extraction, self-supervised]",
        "---",
        f"# {title}",
        "",
    )
    size = f"{shape['num_parameters'] / 1e6:.1f} million parameters, {shape['num_features']} pooled features"
    yield f"A ResNet trunk without classifier ({size}), by torchvision's tensor names, in two formats."
    yield "Give it images that are normalized as below."
    yield "```python"
    yield from ("import torch", "from safetensors.torch import load_file", "")
    if as_tensorflow := shape["padding"] == "SAME":
        yield "from models.zoo.layouts import SamePool  # of the repository"
    if {key: shape[key] for key in R50} == R50:
        yield from (
            "from torchvision.models import resnet50",
            "",
            "trunk = resnet50()",
            "trunk.fc = torch.nn.Identity()",
        )
    else:
        arguments = f"width={shape['width']:g}, blocks={tuple(shape['blocks'])}, stem='{shape['stem']}'"
        yield from (
            "from models.networks.resnet import ResNet  # of the repository",
            "",
            f"trunk = ResNet({arguments})",
        )
    if as_tensorflow:
        yield "trunk.maxpool = SamePool(3, stride=2)  # pads as TensorFlow does"
    yield 'trunk.load_state_dict(load_file("trunk.safetensors"))  # or torch.load("trunk.pth", weights_only=True)'
    yield from ("```", "")


def _measured(folder: Path, made: Mapping[str, Any], verdicts: WrittenVerdicts) -> Iterator[str]:
    """Yield a table of the evaluations of a run beside it, with the verdicts that checks have given them.

    Evaluations of an earlier checkpoint of the same name are left out.
    """
    found = []
    for path in sorted(folder.parent.glob("*/result.json")):
        result = read_json(path)
        present, evaluated = (each.get("provenance", {}).get("checkpoint_sha256") for each in (made, result))
        if made["run_id"] in result.get("parents", []) and (evaluated or present) == (present or evaluated):
            found.append(result)
    if not found:
        return
    given = {
        name: f"{cell['verdict']} ({table['heading']})"
        for table in verdicts.tables
        for row in table["rows"]
        for cell in row["cells"].values()
        if cell
        for name in cell["run_ids"]
    }
    yield markdown_row(("evaluation", "numbers", "verdict"))
    yield markdown_row(("---", "---", "---"))
    for result in found:
        numbers = ", ".join(f"{name} {value:.2f}" for name, value in result["metrics"].items())
        yield markdown_row((f"{result['name']}, seed {result['seed']}", numbers, given.get(result["run_id"], "")))
