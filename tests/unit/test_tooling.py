"""The commands, the locks and their installer, and the shape of the checkout."""

import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reproduce.cli.parser import parse_arguments

ROOT = Path(__file__).resolve().parents[2]
Install = Callable[..., "subprocess.CompletedProcess[str]"]
HOUSE = {".ci", ".git", "docker", "docs", "evals", "models", "reproduce", "requirements", "tables", "tests"}
LOCKS = ("build", "run", "nvcc", "dev")
BY_HAND = "detectron2"


def make(*arguments: str) -> str:
    return subprocess.run(["make", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def targets() -> list[str]:
    return re.findall(r"^([a-z][a-z%-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)


def pins(lock: Path) -> dict[str, list[str]]:
    """Requirement -> its hashes."""
    found = {}
    for line in lock.read_text().replace("\\\n", " ").splitlines():
        if line.strip() and not line.strip().startswith("#"):
            requirement, *hashes = line.split()
            found[requirement] = hashes
    return found


def test_help_lists_every_target_and_variable() -> None:
    listed = re.findall(r"^  make (\S+) +\S", make("help"), re.MULTILINE)
    assert listed == [target.replace("%", "*") for target in targets()]
    variables = re.findall(r"^([A-Z_]+) [?]=.*#", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert re.findall(r"^  ([A-Z_]+) +\S", make("help"), re.MULTILINE) == variables


def test_help_is_the_default_and_names_tables_and_experiments() -> None:
    text = make()
    assert text == make("help")
    for path in [*ROOT.glob("tables/*/table*.yaml"), *ROOT.glob("reproduce/conf/e[vx]*/*.yaml")]:
        assert re.search(rf"\b{path.stem}\b", text), path


def test_unknown_make_variable_is_refused() -> None:
    """Make itself passes over it: SEED=3 would make one seed."""
    make = ["make", "--no-print-directory", "--dry-run"]
    command = [*make, "reproduce-table3", "SEED=3", "DATA=/pictures", "PYTHON=python3"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.rstrip().endswith("*** there is no variable SEED: make help lists the variables.  Stop.")


@pytest.mark.parametrize(
    ("target", "variable"),
    [
        ("pretrain-swav_800ep", "SEEDS=3"),
        ("evaluate-knn", "SEEDS=3"),
        ("pretrain-swav_800ep", "BUDGET=24"),
        ("evaluate-knn", "FROM=released"),
        ("reproduce-table7", "OVERRIDES=batch_size=8"),
        ("check-table7", "CHECKPOINT=own.pt"),
        ("plan-table7", "OVERRIDES=batch_size=8"),
        ("report-table7", "OVERRIDES=batch_size=8"),
        ("smoke", "SCALE=lite"),
        ("lite", "SCALE=paper"),
    ],
)
def test_a_variable_that_a_target_does_not_read_is_refused(target: str, variable: str) -> None:
    """It would change nothing: the plain recipe would run, or one seed, and be judged."""
    command = ["make", "--no-print-directory", "--dry-run", target, variable]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"*** make {target} takes no {variable.partition('=')[0]}: " in done.stderr


VARIABLES: dict[str, tuple[str, str, Any]] = {
    "SCALE": ("paper", "scale", "paper"),
    "SEEDS": ("3", "seeds", 3),
    "FROM": ("released", "source", "released"),
    "BUDGET": ("24 H100", "budget", "24 H100"),
    "CORES": ("3", "cores", 3),
    "CLUSTER": ("slurm", "cluster", "slurm"),
    "CLUSTER_OPTIONS": ("slurm.qos=a max_jobs=2", "cluster_options", "slurm.qos=a max_jobs=2"),
    "DATA": ("/pictures", "data", "/pictures"),
    "DATA_CONFIG": ("own.yaml", "data_config", "own.yaml"),
    "IMAGES": ("/own", "images", "/own"),
    "SKIP_BAD_IMAGES": ("1", "skip_bad_images", True),
    "SKIP_MISSING_DATA": ("1", "skip_missing_data", True),
    "STRICT": ("1", "strict", True),
    "CHECKPOINT": ("own.pt", "checkpoint", "own.pt"),
    "OVERRIDES": ("seed=3 batch_size=8", "overrides", ["seed=3", "batch_size=8"]),
    "TABLES": ("table3 table7", "tables", ["table3", "table7"]),
    "SAME_SEED": ("1", "same_seed", True),
    "ONLY_NEW": ("1", "only_new", True),
    "PRECISION": ("fp32 bf16", "precision", ["fp32", "bf16"]),
    "DATASETS": ("imagenet voc07", "datasets", ["imagenet", "voc07"]),
    "DECODE": ("all", "decode", "all"),
    "ARCHIVES": ("/archives", "archives", "/archives"),
    "SHARDS": ("/shards", "shards", "/shards"),
}
"""What make is given, and what the command line then says: the name and the value of a parsed option."""
IMAGES = ("DATA", "DATA_CONFIG", "IMAGES", "SKIP_BAD_IMAGES")
RUNS = ("SEEDS", "CLUSTER", "CLUSTER_OPTIONS", "FROM", "BUDGET", "CORES")
TABLE, SINGLE = ("SCALE", *IMAGES, *RUNS), ("SCALE", *IMAGES, "CLUSTER", "CLUSTER_OPTIONS", "OVERRIDES")
COMMANDS = {
    **dict.fromkeys(("smoke", "lite"), (*IMAGES, *RUNS, "STRICT", "SKIP_MISSING_DATA")),
    "reproduce-table7": (*TABLE, "STRICT", "SKIP_MISSING_DATA"),
    "check-table7": (*TABLE, "STRICT"),
    **dict.fromkeys(("plan-table7", "report-table7", "render-table7"), TABLE),
    "pretrain-swav_800ep": SINGLE,
    "evaluate-knn": (*SINGLE, "CHECKPOINT"),
    "export": ("SCALE", "CHECKPOINT"),
    "pictures": ("SCALE", "CHECKPOINT", "DATA"),
    "preflight": ("SCALE", "PRECISION", "CLUSTER", "CLUSTER_OPTIONS", "CORES"),
    "data-verify": ("DATA", "DATA_CONFIG", "DECODE", "DATASETS"),
    "data-prepare": ("DATA", "DATA_CONFIG", "ARCHIVES", "DATASETS"),
    "data-shard": ("DATA", "DATA_CONFIG", "SHARDS", "DATASETS"),
    "record-baseline": (*TABLE, "SAME_SEED", "TABLES"),
    "recorded-claims": ("SCALE",),
    "record-golden": ("SCALE", "CORES", "ONLY_NEW"),
}
"""Targets that call `python -m reproduce`, with the variables that they read."""


@pytest.mark.parametrize("target", COMMANDS)
def test_every_variable_of_a_target_reaches_its_command(target: str) -> None:
    """What has no effect would go unnoticed: the command runs, and does less than it was asked for."""
    given = [f"{name}={VARIABLES[name][0]}" for name in COMMANDS[target]]
    printed = make("--no-print-directory", "--dry-run", target, "PYTHON=python3", *given)
    (line,) = [line for line in printed.replace("\\\n", "").splitlines() if " -m reproduce " in line]
    options = parse_arguments(shlex.split(line)[3:])
    for name in COMMANDS[target]:
        _, option, value = VARIABLES[name]
        assert getattr(options, option) == value, name


@pytest.mark.parametrize(
    ("target", "given", "words"),
    [
        ("doctor", ["DATA=/pictures", "DATA_CONFIG=own.yaml"], "--data /pictures --data-config own.yaml"),
        ("fetch-weights", ["CHECKPOINT=swav_800ep"], "fetch-weights -- swav_800ep"),
        ("bench", ["DATA=/pictures"], "--pictures /pictures"),
        ("gpu-bench", ["DATA=/pictures"], "--pictures /pictures"),
        ("docker-test", ["SOURCES=/mirrors"], "--sources /mirrors"),
        ("lock", ["UPGRADE=wandb"], "--upgrade-package wandb requirements/$name.in"),
    ],
)
def test_a_variable_of_another_program_reaches_it(target: str, given: list[str], words: str) -> None:
    printed = make("--no-print-directory", "--dry-run", target, "PYTHON=python3", *given).replace("\\\n", "")
    assert f" {words} " in f" {' '.join(shlex.split(printed))} "


def test_the_variables_of_all_commands_are_known_here() -> None:
    makefile = (ROOT / "Makefile").read_text()
    calling = {target for target, recipe in re.findall(r"^([a-z%-]+):.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
               if "$(REPRODUCE)" in recipe}  # fmt: skip
    assert {re.sub("-(table7|knn|swav_800ep)$", "-%", target) for target in COMMANDS} == calling - {"fetch-weights"}
    passed_on = set(re.findall(r"^export (.*)$", makefile, re.MULTILINE)[0].split()) | {"SOURCES"}
    assert set(re.findall(r"^([A-Z0-9_]+) [?]=.*#", makefile, re.MULTILINE)) == {*VARIABLES, *passed_on}
    assert {name for names in COMMANDS.values() for name in names} == set(VARIABLES)


@pytest.mark.parametrize("target", ["export", "pictures"])
def test_a_command_without_its_checkpoint_is_asked_for_it(target: str) -> None:
    assert "--checkpoint" not in make("--dry-run", target)
    assert "--checkpoint 'run'" in make("--dry-run", target, "CHECKPOINT=run")


def test_a_command_is_printed_in_one_line() -> None:
    """An option that is not given would leave a line of its own, with nothing in it."""
    rules = ["reproduce-table7", "evaluate-knn", "preflight", "doctor", "data-verify", "data-prepare", "data-shard"]
    printed = make("--dry-run", *rules)
    assert len(re.findall(r"-m reproduce\b", printed)) == len(rules)
    assert "\\\n" not in printed


def test_make_variables_are_quoted() -> None:
    printed = make(
        "--dry-run", "plan-table3", "DATA=/my pictures/it's $$HOME", "SEEDS=3", "CORES=2", "SKIP_BAD_IMAGES=1"
    )
    command = next(line for line in printed.splitlines() if "-m reproduce" in line).split(" ", 1)[1]
    words = subprocess.run(["sh", "-c", f'printf "%s\\n" {command}'], check=True, capture_output=True, text=True).stdout
    picked = [
        "--scale",
        "smoke",
        "--data",
        "/my pictures/it's $HOME",
        "--skip-bad-images",
        "--seeds",
        "3",
        "--cores",
        "2",
    ]
    assert words.splitlines() == ["-m", "reproduce", "plan", "table3", *picked]


@pytest.mark.parametrize("name", [*LOCKS, BY_HAND])
def test_a_lock_pins_versions_with_hashes_and_names_no_host_and_no_path(name: str) -> None:
    lock = ROOT / "requirements" / f"{name}.txt"
    assert pins(lock)
    for requirement, hashes in pins(lock).items():
        assert re.fullmatch(r"[a-z0-9-]+==[0-9a-z.]+", requirement)
        assert hashes
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes)
    assert not re.search(r"://|--(extra-)?index|--find-links|\.org|\.com|(^|[\s=])[/~]", lock.read_text(), re.MULTILINE)


def test_dev_lock_contains_the_run_lock() -> None:
    run, dev = (pins(ROOT / "requirements" / f"{name}.txt") for name in ("run", "dev"))
    assert run.items() <= dev.items()


@pytest.mark.parametrize("name", LOCKS)
def test_each_library_has_a_reason_and_is_locked(name: str) -> None:
    locked = {requirement.split("==")[0] for requirement in pins(ROOT / "requirements" / f"{name}.txt")}
    for line in (ROOT / "requirements" / f"{name}.in").read_text().splitlines():
        if line and not line.startswith(("#", "-")):
            requirement, reason = line.split("#")
            assert reason.strip()
            assert re.split(r"==|\[", requirement)[0].strip() in locked


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout that has only its requirements/."""
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    return tmp_path


def install(checkout: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the installer; pip would find no package."""
    command = [sys.executable, "-B", str(checkout / "requirements/install.py"), *arguments]
    no_packages = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | no_packages)


def pretend_installed(checkout: Path, name: str) -> None:
    """Write the stamp that a set-up of this lock leaves behind."""
    script = f"import sys, install, json; print(json.dumps({{n: install.lock_digest(n) for n in {(name,)}}}))"
    command = [sys.executable, "-B", "-c", script]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=checkout / "requirements").stdout
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/python").symlink_to(sys.executable)
    (checkout / ".venv/locks.json").write_text(json.dumps({"root": str(checkout), "locks": json.loads(printed)}))


def damage(checkout: Path, name: str = "run") -> None:
    """Cut a lock off inside its first hash: a set-up that goes on says so, before it makes anything."""
    lock = checkout / "requirements" / f"{name}.txt"
    text = lock.read_text()
    lock.write_text(text[: text.index("sha256:") + 20])


def test_matching_stamp_skips_the_setup(checkout: Path) -> None:
    pretend_installed(checkout, "dev")
    done = install(checkout, "dev")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (checkout / ".venv.lock").exists()


def test_a_stamp_of_another_build_of_torch_does_not_count(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(checkout, "run")
    stamp = checkout / ".venv/locks.json"
    stamp.write_text(json.dumps(json.loads(stamp.read_text()) | {"torch": {"TORCH": "cpu"}}))
    for choice in ({"TORCH": "cpu"}, {}):
        with monkeypatch.context() as patch:
            for name, value in choice.items():
                patch.setenv(name, value)
            assert (install(checkout, "run").stdout, stamp.exists()) == ("", True)
    monkeypatch.setenv("TORCH_INDEX", "file:///nowhere")
    assert install(checkout, "run").returncode == 2 and not stamp.exists()


def test_a_stamp_of_another_lock_does_not_count(checkout: Path) -> None:
    pretend_installed(checkout, "run")
    damage(checkout)
    assert install(checkout, "run").returncode == 2


def test_a_stamp_of_another_place_does_not_count(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    pretend_installed(checkout, "run")
    moved = tmp_path_factory.mktemp("moved") / "checkout"
    checkout.rename(moved)
    done = install(moved, "run")
    assert done.returncode == 2
    assert "could not install requirements/build.txt" in done.stderr
    assert not (moved / ".venv/locks.json").exists()


def test_another_checkouts_environment_is_used_through_a_link_and_never_changed(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other") / "checkout"
    shutil.copytree(checkout, other)
    pretend_installed(checkout, "run")
    (other / ".venv").symlink_to(checkout / ".venv")
    done = install(other, "run")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    before = sorted(checkout.rglob("*"))
    done = install(other, "dev")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: .venv is a link to {checkout / '.venv'}, which lacks what requirements/dev.txt pins: "
        "run make there, or remove the link\n"
    )
    assert sorted(checkout.rglob("*")) == before


def test_a_damaged_lock_is_one_sentence_and_leaves_no_stamp(checkout: Path) -> None:
    damage(checkout)
    done = install(checkout, "run")
    assert done.returncode == 2
    assert re.fullmatch(r"error: requirements/run.txt is damaged at '.+': restore it from git\n", done.stderr)
    assert not (checkout / ".venv/locks.json").exists()


def test_another_pin_of_detectron2_makes_the_set_up_anew(checkout: Path) -> None:
    pretend_installed(checkout, "dev")
    damage(checkout, BY_HAND)
    done = install(checkout, "dev")
    assert done.returncode == 2
    assert done.stderr.startswith("error: requirements/detectron2.txt is damaged at 'pb1-detectron2==0.6")


def test_a_missing_lock_and_a_wrong_word_are_one_sentence(checkout: Path) -> None:
    (checkout / "requirements/dev.txt").unlink()
    assert install(checkout, "dev").stderr == (
        "error: cannot read requirements/dev.txt (No such file or directory): restore it from git\n"
    )
    assert install(checkout, "all").stderr == "error: usage: python3.11 requirements/install.py run|dev\n"


def test_a_second_set_up_waits_for_the_first_and_says_so(checkout: Path) -> None:
    damage(checkout)
    with open(checkout / ".venv.lock", "w") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        command = [sys.executable, "-B", str(checkout / "requirements/install.py"), "run"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as second:
            assert second.stdout is not None
            assert second.stdout.readline() == "waiting for another installation into this checkout's .venv to end\n"
            assert second.poll() is None
            fcntl.flock(first, fcntl.LOCK_UN)
            assert "is damaged" in second.communicate()[1]
    assert second.returncode == 2


def wheel(folder: Path, name: str, version: str, script: str = "") -> str:
    """Write a wheel with nothing but a script of its name, if any; give what pins it."""
    info = f"{name}-{version}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
        if script:
            entry = zipfile.ZipInfo(f"{name}-{version}.data/scripts/{name}")
            entry.external_attr = 0o100755 << 16  # an executable file
            archive.writestr(entry, script)
    (folder / "index.html").write_text(f'<a href="{file.name}">{file.name}</a>')
    return f"{name}=={version.removesuffix('+cpu')} --hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}\n"


def test_torch_may_come_from_an_index_of_cpu_wheels(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    packages = tmp_path_factory.mktemp("packages")
    (checkout / "requirements/build.txt").write_text(wheel(packages / "others", "tool", "1.0"))
    of_cuda = "".join(f"{pin}==13.0 --hash=sha256:{'0' * 64}\n" for pin in ("nvidia-cublas", "cuda-toolkit", "triton"))
    torch = [
        wheel(packages / name, name, f"{version}+cpu") for name, version in (("torch", "2.1"), ("torchvision", "3.1"))
    ]
    of_pypi = [re.sub(r"[0-9a-f]{64}", "0" * 64, pin) for pin in torch]
    (checkout / "requirements/run.txt").write_text(
        wheel(packages / "others", "library", "2.0") + of_cuda + "".join(of_pypi)
    )
    (checkout / "requirements/detectron2.txt").write_text(wheel(packages / "others", "detector", "0.6"))
    indexes = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": (packages / "empty").as_uri(),
        "PIP_FIND_LINKS": str(packages / "others"),
        "TORCH_INDEX": packages.as_uri(),
    }
    command = [sys.executable, "-B", str(checkout / "requirements/install.py"), "run"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | indexes)
    assert (done.returncode, done.stderr) == (0, "")
    (site,) = checkout.glob(".venv/lib/*/site-packages")
    installed = {path.name.removesuffix(".dist-info") for path in site.glob("*.dist-info")}
    assert {name for name in installed if not name.startswith(("pip-", "setuptools-"))} == {
        *("tool-1.0", "library-2.0", "detector-0.6"),
        *("torch-2.1+cpu", "torchvision-3.1+cpu"),
    }
    assert install(checkout, "run").stdout == ""  # the lock is held


def test_top_level_folders() -> None:
    made_by_commands = {
        line.strip("/\n") for line in (ROOT / ".gitignore").read_text().splitlines() if line.endswith("/")
    }
    folders = {entry.name for entry in ROOT.iterdir() if entry.is_dir()}
    assert folders - made_by_commands <= HOUSE
    assert HOUSE - folders <= {".git", "docker"}


@pytest.fixture
def tiny(checkout: Path) -> Install:
    """Install locks of three empty packages; uv writes down what it is asked, and does `then`."""
    packages = checkout / "packages"

    def run(then: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        script = f'#!/bin/sh\necho "$UV_FIND_LINKS $*" >> {checkout}/asked\n{then}\n'
        for name, pins in {
            "build": wheel(packages, "uv", "1.0", script),
            "run": wheel(packages, "library", "2.0") + wheel(packages, "torch", "2.1"),
            "detectron2": wheel(packages, "detector", "0.6"),
        }.items():
            (checkout / f"requirements/{name}.txt").write_text(pins)
        here = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": f"{packages} /elsewhere"}
        command = [sys.executable, "-B", str(checkout / "requirements/install.py"), "run"]
        return subprocess.run(
            command, check=False, capture_output=True, text=True, env={**os.environ, **here, **environment}
        )

    return run


def in_venv(checkout: Path) -> set[str]:
    """The packages in .venv, without what every one has."""
    found = {path.name.removesuffix(".dist-info") for path in checkout.glob(".venv/lib/*/site-packages/*.dist-info")}
    return {name for name in found if not name.startswith(("pip-", "setuptools-"))}


def test_uv_installs_from_where_pip_would(checkout: Path, tiny: Install) -> None:
    done = tiny("exit 0")
    assert (done.returncode, done.stderr) == (0, "")
    assert in_venv(checkout) == {"uv-1.0"}  # pip has installed nothing else
    of_lock, of_detectron2 = (checkout / "asked").read_text().splitlines()
    assert of_lock.startswith(f"{checkout}/packages,/elsewhere pip install --python {checkout}/.venv/bin/python ")
    assert of_lock.endswith(
        f"--no-index --no-deps --no-build-isolation --require-hashes -r {checkout}/requirements/run.txt"
    )
    assert of_detectron2.endswith(f"--require-hashes -r {checkout}/requirements/detectron2.txt")


def test_pip_installs_what_uv_cannot(checkout: Path, tiny: Install) -> None:
    done = tiny("echo 'error: this machine has no such thing' >&2; exit 2")
    assert (done.returncode, done.stderr) == (0, "")
    assert in_venv(checkout) == {"uv-1.0", "library-2.0", "torch-2.1", "detector-0.6"}
    assert (
        "uv: could not install requirements/run.txt: this machine has no such thing (more in .venv.log); pip tries it "
        "now, one package after another\n"
    ) in done.stdout
    assert len((checkout / "asked").read_text().splitlines()) == 1  # it is not asked again


def test_the_cpu_build_of_torch_comes_from_its_own_index(checkout: Path, tiny: Install) -> None:
    assert tiny("exit 0", TORCH="cpu").returncode == 0
    of_torch, of_others = (checkout / "asked").read_text().splitlines()[:2]
    assert of_torch.endswith("--no-deps --no-build-isolation --torch-backend=cpu torch==2.1")
    assert of_others.endswith(f"--require-hashes -r {checkout}/.venv/run.txt")
    assert (checkout / ".venv/run.txt").read_text().startswith("library==2.0 --hash=")
    assert "torch" not in (checkout / ".venv/run.txt").read_text()


def test_the_chosen_build_of_torch_replaces_another_and_is_remembered(checkout: Path, tiny: Install) -> None:
    def asked() -> str:
        file = checkout / "asked"
        text = file.read_text() if file.exists() else ""
        file.unlink(missing_ok=True)
        return text

    tiny("exit 0")
    assert "--torch-backend" not in asked()
    tiny("exit 0", TORCH="cpu")
    assert "--torch-backend=cpu" in asked()
    said = tiny("exit 0").stdout  # its packages are new, so the lock has changed
    assert "torch comes from where it came from before (TORCH=cpu); make clean forgets that\n" in said
    assert "--torch-backend=cpu" in asked()


def test_the_cpu_build_needs_uv(checkout: Path, tiny: Install) -> None:
    """Without it, the CUDA build would be there without a word."""
    done = tiny("echo 'error: no network' >&2; exit 2", TORCH="cpu")
    assert done.returncode == 2
    assert done.stderr == (
        "error: could not install requirements/run.txt (TORCH=cpu): no network (more in .venv.log); TORCH_INDEX=URL "
        "names another index of CPU builds\n"
    )
    assert in_venv(checkout) == {"uv-1.0"}
    done = tiny("exit 0", TORCH="gpu")
    assert done.stderr == "error: TORCH=gpu is unknown: there is TORCH=cpu; without it torch has CUDA\n"


def test_a_failure_names_the_address_that_could_not_be_read(tiny: Install) -> None:
    uv = (
        "error: Request failed after 3 retries",
        "  cause: Failed to fetch: https://localhost/cpu",
        "  cause: dns error",
    )
    done = tiny("; ".join(f"echo '{line}' >&2" for line in uv) + "; exit 2", TORCH="cpu")
    assert "(TORCH=cpu): Request failed after 3 retries: Failed to fetch: https://localhost/cpu (more" in done.stderr


def test_pips_configuration_is_uvs(tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://one.example/simple\nfind-links =\n    /wheels\n    /more wheels\n"
        "trusted-host = a.example\n  b.example\ncert = /ca.pem\n[install]\nindex-url = https://two.example/simple\n"
        "extra-index-url = https://three.example/simple\n[download]\nproxy = http://none.example\n"
    )
    script = "import sys, json, pip_settings as p; print(json.dumps(p.for_uv(p.settings(sys.executable))))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_", "SSL_"))}
    environment |= {
        "PIP_CONFIG_FILE": str(config),
        "PIP_DEFAULT_TIMEOUT": "7",
        "PIP_NO_INDEX": "true",
        "HOME": "/nowhere",
    }
    environment |= {"UV_INSECURE_HOST": "mine.example"}
    command = [sys.executable, "-B", "-c", script]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=ROOT / "requirements", env=environment
    )
    variables, arguments = json.loads(done.stdout)
    assert arguments == ["--no-index"]
    assert variables == {
        "UV_DEFAULT_INDEX": "https://two.example/simple",
        "UV_INDEX": "https://three.example/simple",
        "UV_FIND_LINKS": "/wheels,/more,wheels",
        "UV_HTTP_TIMEOUT": "7",
        "SSL_CERT_FILE": "/ca.pem",
    }
