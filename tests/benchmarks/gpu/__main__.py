"""Measure what this machine's GPU does: `python -m tests.benchmarks.gpu --pictures FOLDER --out FILE`.

Results go to a JSON after each measurement, so that a machine that is taken away leaves what it had measured; a
measurement that fails is recorded with its error. `--table FILE...` prints their table instead; without a FILE, that of
docs/performance.md, from the JSONs in `recorded/`.
"""

import argparse
import datetime
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from reproduce.data.datasets.image_folder import ImageList
from reproduce.data.pipeline.nvjpeg import NVJPEG
from reproduce.engine.arithmetic import configure_torch
from reproduce.engine.distributed.collectives import device
from reproduce.engine.runs.provenance import code_version, hardware_name
from reproduce.files import read_json, write_json
from tests.benchmarks.gpu import parts, steps
from tests.benchmarks.gpu.sizes import SIZES, Size
from tests.benchmarks.gpu.table import page_section, render

Measurement = Callable[[], dict[str, float]]
SUFFIXES = (".jpg", ".jpeg")
MIN_IMAGES = 4096
"""A folder with fewer photographs is read several times in an epoch."""


def photographs(folder: str, size: Size, made: Path) -> ImageList:
    """Return the JPEG files below `folder`; without a folder, generate some in `made`."""
    if folder:
        paths = sorted(str(path) for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    else:
        from tests.benchmarks.test_pipeline import generated

        paths = [str(made / f"{number}.jpg") for number, _ in enumerate(generated(*size.photograph_px))]
        for path, encoded in zip(paths, generated(*size.photograph_px), strict=True):
            Path(path).write_bytes(encoded)
    if not paths:
        sys.exit(f"error: there is no JPEG file in {folder}: name a folder of photographs, or leave --pictures out")
    paths *= -(-MIN_IMAGES // len(paths)) if size.scale == "paper" else 1
    return ImageList(paths, [0] * len(paths), ["photograph"])


def step_measurements(size: Size, images: ImageList, num_images: int) -> Iterator[tuple[str, Measurement]]:
    """Yield the name of each measurement of training steps, and the function that makes it."""
    made: list[steps.Training] = []

    def training() -> steps.Training:
        if not made:
            made.append(steps.Training(size, num_images))
        return made[0]

    def timed(name: str, batches: Callable[[], Any], num_workers: int = 0) -> dict[str, float]:
        return {f"step_{num_images}_{name}_seconds": training().seconds_per_step(batches(), num_workers)}

    def loaded(name: str, num_workers: int, decoder: str | None) -> dict[str, float]:
        return timed(name, lambda: training().loaded(images, num_workers, decoder), num_workers)

    def host_batch() -> Any:
        return next(training().host_batches(images, 0))

    def loader_alone() -> dict[str, float]:
        workers = size.num_workers[0]
        return {
            "loader_images_per_second_per_worker": training().images_per_second_of_loader(images, workers) / workers
        }

    yield "resident", lambda: timed("resident", lambda: training().resident())
    yield "augmented", lambda: timed("augmented", lambda: training().augmented(host_batch()))
    yield "uploaded", lambda: timed("uploaded", lambda: training().uploaded(images, host_batch()))
    for source, decoder in (("loader", None), (NVJPEG, NVJPEG)):
        for workers in size.num_workers:
            name = f"{source}_{workers}"
            yield name, partial(loaded, name, workers, decoder)
    most = size.num_workers[-1]
    yield "activity", lambda: _renamed(num_images, training().device_activity(training().loaded(images, most), most))
    if num_images == size.num_images[0]:
        yield "flops", lambda: {f"step_{num_images}_flops": training().flops_per_step()}
        yield "loader", loader_alone


def _renamed(num_images: int, values: dict[str, float]) -> dict[str, float]:
    return {f"step_{num_images}_{name}": value for name, value in values.items()}


def measurements(size: Size, images: ImageList) -> Iterator[tuple[str, Measurement]]:
    """Yield all measurements, the most wanted first."""
    yield "matrix product", lambda: {"matrix_product_flops": steps.matrix_product_flops(size)}
    for num_images in size.num_images:
        for name, measure in step_measurements(size, images, num_images):
            yield f"{name}, {num_images} images", measure
    for name in ("optimizers", "features", "checkpoint_halt", "detr", "faster_rcnn", "knn"):
        yield name, partial(getattr(parts, name), size)


def run(size_name: str, pictures: str, out: Path, seconds: float = float("inf")) -> dict[str, Any]:
    """Make all measurements, or those that begin within `seconds`; write `out` after each, and return its content."""
    size, started = SIZES[size_name], time.monotonic()
    content: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "size": size_name,
        "hardware": hardware_name(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "git_commit": code_version()["git_commit"],
        "pictures": "photographs" if pictures else "generated JPEG files",
        "measured": {},
        "failed": {},
    }
    configure_torch(steps.pretraining_config(size))
    with tempfile.TemporaryDirectory() as folder:
        images = photographs(pictures, size, Path(folder))
        for name, measure in measurements(size, images):
            if time.monotonic() - started > seconds:
                content["failed"][name] = "there was no time left"
                continue
            try:
                found = measure()
            except Exception as error:  # noqa: BLE001 - one measurement's failure must not cost the others
                content["failed"][name] = f"{type(error).__name__}: {error}".splitlines()[0]
                print(f"{name}: failed: {content['failed'][name]}", flush=True)
            else:
                content["measured"] |= found
                shown = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
                print(f"{time.monotonic() - started:.0f} s: {name}: {shown or 'not possible here'}", flush=True)
            write_json(out, content)
            gc.collect()
            if device().type == "cuda":
                torch.cuda.empty_cache()
    return content


def main(arguments: list[str]) -> int:
    """Measure, or print the table of earlier measurements."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__)
    parser.add_argument("--pictures", default="", help="folder of JPEG photographs (default: generated ones)")
    parser.add_argument("--out", type=Path, default=Path("gpu-bench.json"), help="the JSON to write")
    parser.add_argument("--size", choices=sorted(SIZES), default="paper", help="tiny: to test this program")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no measurement after so long")
    parser.add_argument("--table", type=Path, nargs="*", metavar="FILE", help="print the table of these JSONs")
    options = parser.parse_args(arguments)
    if options.table is not None:
        print(render([read_json(path) for path in options.table]) if options.table else page_section())
        return 0
    if options.size == "paper" and device().type != "cuda":
        print("gpu-bench needs a CUDA GPU, and torch finds none (see `make doctor`); --size tiny runs anywhere")
        return 2
    content = run(options.size, options.pictures, options.out, options.seconds)
    print(render([content]))
    print(f"wrote {options.out}")
    return 1 if content["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
