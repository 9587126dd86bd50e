"""The images, built and run by a real Docker engine: `make docker-test` (BASE=... where no registry is at hand).

With SOURCES=DIR, the CUDA image is built from git mirrors of apex and Detectron2 in DIR, at the pinned commits.
Without it, two small repositories stand in: all of the Dockerfile runs, but not those projects' own code.
"""

import base64
import json
import os
import re
import struct
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docker import stand_ins

ROOT = Path(__file__).parents[2]
TINY = (
    "network.width=0.0625 network.head_hidden_dim=16 network.embedding_dim=8 batch_size=64 epochs=1 "
    "collapse.on_collapse=warn logging.every_steps=1 cluster.num_threads=1"
)
"""A pretraining of 31 steps, with a line of metrics each."""
IMPORTED = (
    *("torchvision.ops", "sklearn", "wandb", "snakemake"),
    *("apex.parallel", "apex_C", "amp_C", "syncbn", "detectron2._C", "detectron2.layers"),
)
OF_THE_MACHINE = ("images_per_second", "peak_memory_gb", "data_wait_share")
"""Metrics that tell no number of the training."""
READ_ONLY = ("--read-only", "--tmpfs", "/tmp")
Done = subprocess.CompletedProcess[str]


def docker(*arguments: str, check: bool = True) -> Done:
    """A command of the engine's."""
    done = subprocess.run(["docker", *arguments], check=False, capture_output=True, text=True)
    assert not check or done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr[-2000:]}{done.stdout[-500:]}"
    return done


@pytest.fixture(scope="session", autouse=True)
def engine() -> None:
    """An engine that answers, or one sentence."""
    try:
        answer = docker("version", "--format", "{{.Server.Version}}", check=False)
        reason = answer.stderr.strip()
    except FileNotFoundError:
        answer, reason = None, "there is no docker in PATH"
    if answer is None or answer.returncode:
        pytest.exit(f"docker-test needs a Docker engine that answers `docker version`: {reason}", returncode=2)


def build(tag: str, *options: str, **environment: str) -> str:
    """Build an image with docker/build.sh; give its tag."""
    command = [str(ROOT / "docker/build.sh"), "--network", "host", *options, "--tag", tag]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return tag


@pytest.fixture(scope="session")
def cpu(engine: None) -> str:
    return build("swav-reproduction:test-cpu", FLAVOUR="cpu")


@pytest.fixture
def volume() -> Iterator[str]:
    yield from named_volume()


@pytest.fixture(scope="session")
def cache(engine: None) -> Iterator[str]:
    """Generated pictures, once for all tests."""
    yield from named_volume()


def named_volume() -> Iterator[str]:
    name = f"swav-test-{uuid.uuid4().hex[:12]}"
    docker("volume", "create", name)
    yield name
    docker("volume", "rm", "--force", name)


def run(image: str, *command: str, options: tuple[str, ...] = (), check: bool = True) -> Done:
    return docker("run", "--rm", "--network", "host", *options, image, *command, check=check)


def volumes(results: str, cache: str) -> tuple[str, ...]:
    return ("-v", f"{results}:/app/results", "-v", f"{cache}:/app/.cache")


def results(image: str, results: str) -> dict[str, dict[str, Any]]:
    """Every result.json of a volume, by the run's name."""
    script = "cat results/smoke/*/result.json"
    text = run(image, "sh", "-c", script, options=("-v", f"{results}:/app/results")).stdout
    decoder, found = json.JSONDecoder(), {}
    while text := text.strip():
        result, end = decoder.raw_decode(text)
        found[result["name"]] = result
        text = text[end:]
    return found


def test_image_prints_the_machine_then_the_command(cpu: str) -> None:
    done = run(cpu, "echo", "asked")
    assert done.stdout == "asked\n"
    for words in ("processor", "GPU", "as pinned", "torch", "results are lost with this container"):
        assert words in done.stderr


def test_image_takes_the_recorded_first_steps_of_every_recipe(cpu: str, cache: str) -> None:
    options = (*READ_ONLY, "--shm-size", "1g", "--tmpfs", "/app/reports:mode=1777", "-v", f"{cache}:/app/.cache")
    done = run(cpu, ".venv/bin/python", "docker/selftest.py", "cpu", "--preflight", options=options)
    assert "preflight: every recipe takes its recorded first steps" in done.stdout


def test_image_has_no_root_user_and_no_compiler(cpu: str) -> None:
    assert run(cpu, "id", "-u").stdout == "1000\n"
    for tool in ("cc", "g++", "nvcc", "ld"):
        assert run(cpu, "sh", "-c", f"command -v {tool}", check=False).returncode != 0, tool
    assert run(cpu, "sh", "-c", "touch /app/evals/new", check=False).returncode != 0


def test_image_contains_only_the_listed_files(cpu: str) -> None:
    listed = {rule[1:].strip("/") for rule in (ROOT / ".dockerignore").read_text().splitlines() if rule.startswith("!")}
    assert set(run(cpu, "ls", "-A", "/app").stdout.split()) == listed | {".venv", ".cache", "results", "reports"}


def test_image_has_labels(cpu: str) -> None:
    labels = json.loads(docker("image", "inspect", "--format", "{{json .Config.Labels}}", cpu).stdout)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert labels["org.opencontainers.image.revision"].removesuffix("-dirty") == commit.stdout.strip()
    assert re.fullmatch(r"\d+\.\d+\.\d+", labels["swav.torch"])


def test_nothing_is_left_to_install(cpu: str) -> None:
    done = run(cpu, "make", "setup", options=READ_ONLY)
    assert done.stdout == ""


def test_stopped_container_resumes_to_the_same_result(cpu: str, cache: str) -> None:
    """On a read-only root, as nobody special, in 3 GB: results stay on the volume, and so does where it was stopped."""
    command = ("make", "pretrain-swav_800ep", f"OVERRIDES={TINY}")
    ended = []
    for stopped in (False, True):
        for name in named_volume():
            options = (*READ_ONLY, "--memory", "3g", *volumes(name, cache))
            if stopped:
                _stop_in_mid_run(cpu, options, command)
                left = run(cpu, "sh", "-c", "ls results/smoke/*; cat results/smoke/*/log.txt", options=options).stdout
                assert "result.json" not in left and "the same command continues" in left
            run(cpu, *command, options=options)
            ended.append(results(cpu, name)["swav_800ep"])
    trained, gone_on = ({k: v for k, v in one["metrics"].items() if k not in OF_THE_MACHINE} for one in ended)
    assert trained == gone_on and "loss" in trained
    assert [result["num_attempts"] for result in ended] == [1, 2]


def _stop_in_mid_run(image: str, options: tuple[str, ...], command: tuple[str, ...]) -> None:
    container = docker("run", "--detach", "--network", "host", *options, image, *command).stdout.strip()
    try:
        with subprocess.Popen(
            ["docker", "logs", "--follow", container], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as log:
            assert log.stdout is not None
            assert any(line.startswith("step 3/") for line in log.stdout), "it ended before it could be stopped"
            docker("stop", "--time", "60", container)
        state = json.loads(docker("inspect", "--format", "{{json .State}}", container).stdout)
        assert state["ExitCode"] not in (0, 137)  # ended by itself, before the engine lost its patience
    finally:
        docker("rm", "--force", container)


def test_too_little_shared_memory_is_reported(cpu: str, cache: str, volume: str) -> None:
    options = ("--memory", "250m", "--memory-swap", "250m", *volumes(volume, cache))
    done = run(cpu, "make", "pretrain-swav_800ep", f"OVERRIDES={TINY}", options=options, check=False)
    assert done.returncode != 0
    failure = run(cpu, "sh", "-c", "cat results/smoke/*/failure.json", options=volumes(volume, cache)).stdout
    assert "the machine may have run out of memory" in failure


def test_image_runs_as_any_user(cpu: str, volume: str) -> None:
    options = (*READ_ONLY, "--user", "4321:4321", *volumes(volume, volume))  # the other cache is another user's
    run(cpu, "make", "pretrain-random", "OVERRIDES=network.width=0.0625", options=options)
    (name,) = results(cpu, volume)
    assert name == "random"


def test_table_in_a_container_agrees(cpu: str, cache: str, volume: str) -> None:
    """Exit status 0: every cell lies where it did outside an image."""
    options = (*READ_ONLY, "--shm-size", "1g", *volumes(volume, cache), "-v", f"{cache}:/app/reports")
    done = run(cpu, "make", "reproduce-table7", options=options)
    assert "every cell that ran agrees" in done.stdout
    assert "index.html" in run(cpu, "ls", "-R", "reports", options=options).stdout


@pytest.fixture(scope="session")
def cuda(engine: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The CUDA image, of the real sources if `--sources` names their mirrors."""
    mirrors = request.config.getoption("--sources")
    serve = (
        stand_ins.served_mirrors(Path(mirrors).resolve())
        if mirrors
        else stand_ins.served(tmp_path_factory.mktemp("git"))
    )
    with serve as sources:
        options = [word for name, value in sources.items() for word in ("--build-arg", f"{name}={value}")]
        return build("swav-reproduction:test-cuda", *options, FLAVOUR="cuda")


def test_cuda_image_imports_its_libraries(cuda: str) -> None:
    assert run(cuda, ".venv/bin/python", "docker/selftest.py", "cuda").stdout.splitlines() == [
        f"imported: {', '.join(IMPORTED)}",
        "no GPU found: skipped the GPU checks",
    ]


def test_cuda_image_has_no_compiler(cuda: str) -> None:
    for tool in ("cc", "g++", "nvcc", "ld"):
        assert run(cuda, "sh", "-c", f"command -v {tool}", check=False).returncode != 0, tool


@pytest.mark.parametrize("library", ["syncbn", "detectron2._C"])
def test_cuda_extensions_are_compiled_for_both_gpus_without_symbols(cuda: str, library: str) -> None:
    read = "base64.b64encode(open(u.find_spec(sys.argv[1]).origin, 'rb').read())"  # torch first: they link to it
    script = f"import torch, base64, sys, importlib.util as u; print({read})"
    code = base64.b64decode(run(cuda, ".venv/bin/python", "-c", script, library).stdout[2:-2])
    assert b".text" in elf_sections(code) and b".symtab" not in elf_sections(code)
    assert b"sm_80" in code and b"sm_90" in code


def test_cuda_image_trains_a_detector_on_the_cpu(
    cuda: str, cache: str, volume: str, request: pytest.FixtureRequest
) -> None:
    """The image's own Detectron2, not the one of the lock, trains and evaluates Faster R-CNN."""
    if not request.config.getoption("--sources"):
        pytest.skip("a stand-in is no detector: SOURCES=DIR names mirrors of apex and Detectron2")
    options = (*READ_ONLY, "--shm-size", "1g", *volumes(volume, cache))
    run(cuda, "make", "pretrain-random", options=options)
    (random,) = results(cuda, volume).values()
    run(cuda, "make", "evaluate-voc_detection", f"CHECKPOINT={random['run_id']}", options=options)
    assert results(cuda, volume)["voc_detection"]["metrics"]


def elf_sections(code: bytes) -> list[bytes]:
    """Names of the sections of a 64-bit library. (The kernels inside are such files, too, each with its own.)"""
    (table,), (size, number, of_names) = struct.unpack_from("<Q", code, 0x28), struct.unpack_from("<3H", code, 0x3A)
    starts = [table + index * size for index in range(number)]
    (names,) = struct.unpack_from("<Q", code, starts[of_names] + 0x18)
    return [code[names + struct.unpack_from("<I", code, start)[0] :].split(b"\0", 1)[0] for start in starts]
