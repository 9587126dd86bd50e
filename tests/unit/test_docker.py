"""docker/: every pin stands in docker/versions.env, and Dockerfile, locks and docs say the same."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from reproduce.cli.parser import build_parser
from reproduce.harness import machine
from tests.unit.test_tooling import ROOT, pins

DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
ASKED_FOR = {"FLAVOUR", "GIT_COMMIT", "TORCH", "TORCH_INDEX"}
"""Arguments of a build that are no pins."""
NEVER_IN_AN_IMAGE = (".git", ".venv", ".netrc", ".env", "results", "reports", "data", ".cache", "wandb", "tests")


def versions() -> dict[str, str]:
    lines = (ROOT / "docker/versions.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def locked(lock: str) -> dict[str, str]:
    """Library -> version."""
    return dict(requirement.split("==") for requirement in pins(ROOT / f"requirements/{lock}.txt"))


def test_the_dockerfile_takes_every_version_from_outside() -> None:
    arguments = re.findall(r"^ARG (\w+)(=\S+)?", DOCKERFILE, re.MULTILINE)
    assert {name for name, default in arguments if not default} <= versions().keys() | ASKED_FOR
    assert {name for name, default in arguments if default} == {"FLAVOUR"}
    for name, value in versions().items():
        assert value not in DOCKERFILE, f"the Dockerfile repeats {name}"
    assert not re.search(r"[0-9a-f]{40}|==\d|^FROM [\w./]+:", DOCKERFILE, re.MULTILINE)


def test_commits_are_whole_and_versions_are_exact() -> None:
    of = versions()
    for name in ("APEX_COMMIT", "DETECTRON2_COMMIT"):
        assert re.fullmatch(r"[0-9a-f]{40}", of[name])
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm(@sha256:[0-9a-f]{64})?", of["BASE"])


def test_the_locks_hold_the_same_torch_and_a_compiler_of_its_cuda() -> None:
    run, compiler = locked("run"), locked("nvcc")
    assert run["torch"] == versions()["TORCH_VERSION"]
    for lock in (run, compiler):
        assert re.fullmatch(re.escape(versions()["CUDA_TOOLKIT"]) + r"(\.0)?", lock["cuda-toolkit"])
    shared = run.keys() & compiler.keys()
    assert {name: run[name] for name in shared} == {name: compiler[name] for name in shared}
    assert {"nvidia-cuda-nvcc", "nvidia-cuda-cccl", "ninja"} <= compiler.keys()


def test_no_pin_has_the_name_of_a_choice_of_the_installation() -> None:
    """A build argument is an environment variable of what a stage runs: `TORCH=2.14.1` would be no build of torch."""
    choices = {"TORCH", "TORCH_INDEX"}
    assert all(f'"{name}"' in (ROOT / "requirements/install.py").read_text() for name in choices)
    assert not choices & versions().keys()


def test_the_docs_and_the_doctor_say_the_same() -> None:
    docs = (ROOT / "docs/docker.md").read_text()
    for name, value in versions().items():
        assert value.removesuffix(".git") in docs, f"docs/docker.md does not say {name}"
        assert machine.pinned_version(name) == value


def test_dockerignore_lists_what_images_contain() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    listed = [rule[1:].strip("/") for rule in rules if rule.startswith("!")]
    assert not set(listed) & set(NEVER_IN_AN_IMAGE)
    assert all((ROOT / name).exists() for name in listed)


def test_compose_keeps_what_runs_leave_and_writes_nowhere_else() -> None:
    compose = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())
    for flavour in ("cpu", "cuda"):
        service = compose["services"][flavour]
        assert service["image"] == f"swav-reproduction:{flavour}"
        assert service["read_only"] is True
        inside = {volume.split(":")[-1 if volume.count(":") == 1 else -2] for volume in service["volumes"][1:]}
        assert inside == {"/app/results", "/app/reports", "/app/.cache"}
        assert all("=" not in variable for variable in service["environment"])
    folders = re.search(r"mkdir -m 1777 ([^\\\n]+)$", DOCKERFILE, re.MULTILINE)
    assert folders
    assert {f"/app/{name}" for name in folders[1].split()} == inside


def build(tmp_path: Path, *options: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run docker/build.sh on an engine that only repeats what it is told, a word a line."""
    (tmp_path / "docker").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "docker").chmod(0o755)
    set_here = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "FLAVOUR": "", "BASE": "", "TORCH": "", "TORCH_INDEX": ""}
    command = [str(ROOT / "docker/build.sh"), *options]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | set_here | environment)


def test_a_build_is_given_the_pins_and_what_the_caller_puts_in_their_place(tmp_path: Path) -> None:
    told = build(tmp_path, "--network", "host").stdout.splitlines()
    given = {told[at + 1] for at, word in enumerate(told) if word == "--build-arg"}
    assert {f"{name}={value}" for name, value in versions().items()} | {"FLAVOUR=cpu"} <= given
    assert told[told.index("--tag") + 1] == "swav-reproduction:cpu" and "--network" in told
    told = build(tmp_path, "--tag", "mine", FLAVOUR="cuda", BASE="my/base:1").stdout.splitlines()
    assert told.index("BASE=my/base:1") > told.index(f"BASE={versions()['BASE']}")  # the last one counts
    assert "FLAVOUR=cuda" in told and "mine" in told and "swav-reproduction:cuda" not in told


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"FLAVOUR": "gpu"}, "unknown FLAVOUR=gpu: use cpu or cuda"),
        ({"FLAVOUR": "cuda", "TORCH_INDEX": "https://localhost/cpu"}, "TORCH and TORCH_INDEX are for FLAVOUR=cpu"),
        ({"FLAVOUR": "cuda", "TORCH": "cpu"}, "TORCH and TORCH_INDEX are for FLAVOUR=cpu"),
    ],
)
def test_a_wrong_build_is_one_sentence(tmp_path: Path, environment: dict[str, str], says: str) -> None:
    done = build(tmp_path, **environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {says}") and done.stderr.count("\n") == 1


def test_every_script_of_the_images_can_be_run() -> None:
    for script in (ROOT / "docker").glob("*.sh"):
        assert script.stat().st_mode & 0o111, script
        assert script.read_text().startswith("#!/bin/sh\n"), script


def test_the_workflows_call_targets_that_there_are() -> None:
    targets = set(re.findall(r"^([a-z][a-z%-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    workflows = list(Path(ROOT / "docs/ci").glob("*.yml"))
    assert workflows
    for workflow in workflows:
        content = yaml.safe_load(workflow.read_text())
        for job in content["jobs"].values():
            for step in job["steps"]:
                for target in re.findall(r"\bmake ([a-z][\w-]*)", step.get("run", "")):
                    assert target in targets or re.sub(r"-.*", "-%", target) in targets, (workflow.name, target)


@pytest.fixture
def selftest(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docker/selftest.py, of an image with one library."""
    spec = importlib.util.spec_from_file_location("selftest", ROOT / "docker/selftest.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "MODULES", {"cpu": ["json"], "cuda": ["csv"]})
    return module


@pytest.mark.parametrize("status", [0, 1, 2])
def test_the_selftest_rehearses_recipes_only_if_asked_and_fails_if_one_differs(
    selftest: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    started: list[tuple[list[str], Path]] = []

    def run(command: list[str], cwd: Path, check: bool) -> "subprocess.CompletedProcess[str]":
        started.append((command, cwd))
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(selftest.subprocess, "run", run)
    selftest.main(["cuda"])
    assert started == [] and "imported: json, csv" in capsys.readouterr().out
    if status:
        with pytest.raises(SystemExit, match=r"^error: the preflight failed: see the lines above"):
            selftest.main(["cpu", "--preflight"])
    else:
        selftest.main(["cpu", "--preflight"])
    assert started == [([sys.executable, "-m", "reproduce", "preflight"], ROOT)]
    build_parser().parse_args(started[0][0][3:])


def test_a_build_does_not_rehearse_recipes() -> None:
    (line,) = re.findall(r"docker/selftest.py .*", DOCKERFILE.partition("COPY docker/selftest.py docker/")[2])
    assert "--preflight" not in line


def test_the_selftest_refuses_an_unknown_image(selftest: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        selftest.main(["gpu"])
    assert "invalid choice: 'gpu' (choose from 'cpu', 'cuda')" in capsys.readouterr().err
