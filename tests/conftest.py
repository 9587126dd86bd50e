"""What holds for all tests: nothing leaves this machine, nothing depends on the clock or on chance."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

if TYPE_CHECKING:
    import torch

settings.register_profile("steady", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("steady")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give a file's tests to one worker, for its fixtures' sake; those of tests/faults, minutes a file, one by one."""
    scheduler = LoadFileScheduling(config, log)
    file_of = scheduler._split_scope
    scheduler._split_scope = lambda nodeid: nodeid if nodeid.startswith("tests/faults/") else file_of(nodeid)
    return scheduler


def only_tests_of_gpus(arguments: Sequence[str], folder: Path) -> bool:
    """Whether pytest, called in `folder`, runs nothing but tests/gpu."""
    paths = [(folder / each.split("::")[0]).resolve() for each in arguments]
    return bool(paths) and all(path.is_relative_to(Path(__file__).parent / "gpu") for path in paths)


def pytest_configure(config: pytest.Config) -> None:
    """Hide this machine's GPUs from the tests and the processes that they start; tests/gpu, run by itself, has them."""
    if only_tests_of_gpus(config.args, config.invocation_params.dir):
        return
    if os.environ.get("TEST_DEVICE") == "cuda":
        raise pytest.UsageError("TEST_DEVICE=cuda is for tests/gpu alone: all other tests run with the GPUs hidden")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True, scope="session")
def _no_account_and_no_network() -> None:
    """Nobody's W&B key or settings reach a test or a process that it starts."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]
    os.environ["WANDB_MODE"] = "offline"


@pytest.fixture(scope="session")
def device() -> "torch.device":
    """What tests/gpu computes on: the GPU that `make gpu-test` demands, or one that is visible; else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    if os.environ.get("TEST_DEVICE") == "cuda":
        if shutil.which("nvidia-smi"):  # a machine that has a GPU: its tests must not pass unseen
            pytest.fail("nvidia-smi is there, and torch finds no CUDA GPU (see `make doctor`)")
        pytest.skip("torch finds no CUDA GPU (see `make doctor`)")
    return torch.device("cpu")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated sets with few pictures of each class, for all tests that only read them."""
    from tests.runs import made_once, tiny_pictures  # with torch in it, which most tests do without

    return made_once(tmp_path_factory, "tiny-pictures", tiny_pictures)


@pytest.fixture
def own_data(data: Path, tmp_path: Path) -> Path:
    """A copy of `data` that a test may damage."""
    return Path(shutil.copytree(data, tmp_path / "own-data"))


@pytest.fixture(scope="session")
def black_data(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `data` whose training pictures of ImageNet are all black."""
    import numpy as np
    from PIL import Image

    from tests.runs import made_once

    def make(root: Path) -> None:
        shutil.copytree(data, root, dirs_exist_ok=True)
        for path in (root / "imagenet" / "train").glob("*/*.jpg"):
            Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path)

    return made_once(tmp_path_factory, "black-pictures", make)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`uninterrupted(main, *overrides)`: the results folder of a run that nothing interrupts, made once."""
    from tests.runs import call, made_once

    def results(main: Callable[[], int], *overrides: str) -> Path:
        def make(folder: Path) -> None:
            with pytest.MonkeyPatch.context() as patch:
                status, said = call(main, patch, *overrides, f"paths.results={folder}")
                assert status == 0, said

        asked = hashlib.sha256(repr((main.__module__, overrides)).encode()).hexdigest()
        return made_once(tmp_path_factory, f"uninterrupted-{asked[:16]}", make)

    return results


@pytest.fixture(scope="session")
def random_checkpoint(uninterrupted: Callable[..., Path]) -> Path:
    """The checkpoint of a tiny network that nothing has trained."""
    from reproduce import pretrain
    from tests.runs import TINY

    (path,) = uninterrupted(pretrain.main, *TINY, "experiment=random").glob("smoke/random-*/checkpoint.pt")
    return path


@pytest.fixture(scope="session")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planner's cache of composed configs, with a few to start with; `composed_here` adds to it."""
    from reproduce.harness.plan import build
    from reproduce.harness.plan.model import CACHE, Request
    from tests.runs import made_once

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            build.build_plan(Request(("table3", "table7"), "smoke"))

    return made_once(tmp_path_factory, "composed-configs", make) / CACHE


@pytest.fixture
def composed_here(tmp_path: Path, composed: Path) -> Iterator[Path]:
    """A copy of that cache in `tmp_path`. What a test adds to it, no later test composes again."""
    from reproduce.harness.plan.model import CACHE
    from tests.runs import lent_configs

    with lent_configs(composed, tmp_path / CACHE) as folder:
        yield folder
