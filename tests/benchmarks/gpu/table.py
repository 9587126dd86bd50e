"""The table of docs/performance.md, from the JSONs of any number of machines; what no machine measured says so."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reproduce.files import read_json
from tests.benchmarks.gpu.sizes import SIZES, Size

RECORDED = Path(__file__).parent / "recorded"
"""The JSONs that docs/performance.md shows."""
NOT_MEASURED = "not measured"
GOAL = 0.95
"""The share of the bound that the whole input should reach."""
Measured = Mapping[str, float]


def inputs(size: Size) -> dict[str, str]:
    """Return the label of each input by its name in the JSON, from the nearest to the furthest."""
    return {
        "resident": "normalized crops on the GPU (the bound)",
        "augmented": "+ augmentation",
        "uploaded": "+ upload",
        **{f"loader_{workers}": f"+ JPEG files, {workers} workers" for workers in size.num_workers},
        **{f"nvjpeg_{workers}": f"the same, decoded on the GPU, {workers} workers" for workers in size.num_workers},
    }


def render(contents: Sequence[Mapping[str, Any]]) -> str:
    """Return two Markdown tables for each machine; without any, those of a machine that measured nothing."""
    empty = {"size": "paper", "measured": {}, "failed": {}}
    return "\n\n".join("\n".join(_machine(content)) for content in contents or [empty])


def _machine(content: Mapping[str, Any]) -> Iterator[str]:
    size, measured = SIZES[content["size"]], content["measured"]
    if "hardware" in content:
        yield (
            f"{content['hardware']}, {content['cores']} cores, torch {content['torch']}, Python {content['python']}, "
            f"{content['date']}, commit {str(content['git_commit'])[:7]}, {content['pictures']}:"
        )
        yield ""
    heads = [f"{count} images: images/s | ms a step | share of the bound" for count in size.num_images]
    yield f"| input of a step | {' | '.join(heads)} |"
    yield "|---|" + "--:|" * (3 * len(heads))
    for name, label in inputs(size).items():
        cells = [cell for count in size.num_images for cell in _step_cells(measured, count, name)]
        yield f"| {label} | {' | '.join(cells)} |"
    yield ""
    yield "| measured | |"
    yield "|---|--:|"
    values = _with_derived(size, measured)
    for label, template in _rows(size):
        yield f"| {label} | {_filled(template, values)} |"
    failed = content["failed"]
    if failed:
        yield ""
        yield "Failed: " + "; ".join(f"{name} ({reason})" for name, reason in failed.items()) + "."


def _step_cells(measured: Measured, count: int, name: str) -> list[str]:
    seconds = measured.get(f"step_{count}_{name}_seconds")
    if seconds is None:
        return [NOT_MEASURED, NOT_MEASURED, NOT_MEASURED]
    bound = measured.get(f"step_{count}_resident_seconds")
    return [f"{count / seconds:,.0f}", f"{1e3 * seconds:.1f}", f"{bound / seconds:.0%}" if bound else NOT_MEASURED]


def _filled(template: str, values: Measured) -> str:
    try:
        return template.format_map(values)
    except KeyError:
        return NOT_MEASURED


def _with_derived(size: Size, measured: Measured) -> dict[str, float]:
    """Add what follows from the measurements, if all that it takes was measured."""
    first, values = size.num_images[0], dict(measured)
    bound = f"step_{first}_resident_seconds"
    with contextlib.suppress(KeyError):
        values["cores"] = GOAL * first / values[bound] / values["loader_images_per_second_per_worker"]
    with contextlib.suppress(KeyError):
        values["peak_tflops"] = values["matrix_product_flops"] / 1e12
        values["share_of_peak"] = values[f"step_{first}_flops"] / values[bound] / values["matrix_product_flops"]
    return values


def _rows(size: Size) -> Iterator[tuple[str, str]]:
    """Yield the label of each row, and its value with the names of measurements in braces."""
    first = size.num_images[0]
    yield f"CPU cores for {GOAL:.0%} of the bound at {first} images", "{cores:.1f}"
    for count in size.num_images:
        idle, launches = f"{{step_{count}_idle_share:.0%}}", f"{{step_{count}_launches:,.0f}}"
        yield f"GPU idle, {size.num_workers[-1]} workers, {count} images", idle
        yield f"kernels launched a step, {count} images", launches
    product = f"a bf16 product of {size.matrix}-square matrices"
    yield f"speed of a step at {first} images, as a share of {product}", "{share_of_peak:.0%}"
    yield product, "{peak_tflops:.0f} TFLOP/s"
    yield "optimizer step of R50: LARC, torch's fused SGD", "{larc_ms:.2f}, {fused_sgd_ms:.2f} ms"
    height, width = size.detection_px
    for name, label in (
        ("features", "features of images a second"),
        ("detr", f"DETR, {size.detr_images} images of {height} x {width}, images/s"),
        ("faster_rcnn", f"Faster R-CNN, {size.rcnn_images} images of {height} x {width}, images/s"),
    ):
        yield f"{label}: fp32, bf16", f"{{{name}_fp32_per_second:,.1f}}, {{{name}_bf16_per_second:,.1f}}"
    yield f"kNN of {size.num_queries:,} queries against {size.num_bank_rows:,} rows", "{knn_seconds:.1f} s"
    checkpoint = "{checkpoint_halt_ms:.0f} ms, {checkpoint_write_ms:.0f} ms"
    yield "checkpoint of R50: halt of the loop, writing beside it", checkpoint


def page_section() -> str:
    """Return the tables of docs/performance.md: of each machine whose JSON is in `RECORDED`, by file name."""
    return render([read_json(path) for path in sorted(RECORDED.glob("*.json"))])
