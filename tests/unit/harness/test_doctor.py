"""`make doctor`: it says what is there, on machines made of fake commands and fake /proc and /sys files."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from reproduce import system
from reproduce.harness import doctor, machine, software
from reproduce.harness.machine import Diagnosis

REPO_ROOT = Path(__file__).parents[3]
A100 = "NVIDIA A100-SXM4-80GB, 81920, 580.65.06, GPU-5f0c\n"
OLD = "Tesla V100-SXM2-16GB, 16384, 470.57.02, GPU-7a1d\n"

Say = Callable[..., None]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Put a command into an otherwise empty PATH: `command("sinfo", "what it prints", exit_status)`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def say(name: str, text: str, status: int = 0) -> None:
        file = folder / name
        file.write_text(f"#!{sys.executable}\nimport sys\nprint({text!r})\nsys.exit({status})\n")
        file.chmod(0o755)

    return say


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of the network: every address is refused by a port that nobody listens at."""
    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")


def by_subject(findings: object) -> dict[str, Diagnosis]:
    assert hasattr(findings, "__iter__")
    return {finding.subject: finding for finding in findings}


def root_of(tmp_path: Path, **files: str) -> Path:
    """A root folder with the files that a kernel would show; __ in a name is a slash, and _dot_ a dot."""
    for name, text in files.items():
        path = tmp_path / "root" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "root"


MEMINFO = "MemTotal:       33554432 kB\nMemAvailable:   16777216 kB\n"


def test_a_bare_machine(tmp_path: Path, command: Say) -> None:
    root = root_of(tmp_path, proc__meminfo=MEMINFO, proc__cpuinfo="model name\t: Abacus 3\n")
    told = by_subject(machine.hardware(root))
    assert "Abacus 3" in told["processor"].text and "granted" not in told["processor"].text
    assert told["memory"].text == "34.4 GB, 17.2 GB of them free"
    assert told["GPU"] == Diagnosis("GPU", "none (nvidia-smi is not there): runs use the processor", "note")
    assert told["shared memory"].level == "note"
    services = by_subject(software.services())
    assert services["docker"].text == "none (docker is not there)"
    assert services["SLURM"].text == "none (sinfo is not there)"


@pytest.mark.parametrize(
    "limits",
    [
        {"sys__fs__cgroup__memory_dot_max": "3221225472\n", "sys__fs__cgroup__cpu_dot_max": "50000 100000\n"},
        {
            "sys__fs__cgroup__memory__memory_dot_limit_in_bytes": "3221225472\n",
            "sys__fs__cgroup__cpu__cpu_dot_cfs_quota_us": "50000\n",
            "sys__fs__cgroup__cpu__cpu_dot_cfs_period_us": "100000\n",
        },
    ],
    ids=["cgroup 2", "cgroup 1"],
)
def test_the_limits_of_a_container(tmp_path: Path, command: Say, limits: dict[str, str]) -> None:
    told = by_subject(machine.hardware(root_of(tmp_path, proc__meminfo=MEMINFO, _dot_dockerenv="", **limits)))
    assert told["system"].text.endswith("in a container")
    assert told["memory"].text == "3.2 GB, the container's limit, of 34.4 GB"
    assert told["processor"].text.endswith("of whose time 0.5 are granted (say CORES=1)")


@pytest.mark.parametrize("unlimited", ["max 100000\n", ""])
def test_no_limit_is_no_quota(tmp_path: Path, unlimited: str) -> None:
    assert system.cpu_quota(root_of(tmp_path, sys__fs__cgroup__cpu_dot_max=unlimited))[0] == float("inf")


def test_gpus_are_counted_by_name(command: Say) -> None:
    command("nvidia-smi", (A100 * 8).strip())
    one = machine.GpuInfo("NVIDIA A100-SXM4-80GB", 81920 * 2**20 / 1e9, "580.65.06", "GPU-5f0c")
    assert machine.list_gpus() == [one] * 8
    told = by_subject(machine.hardware())
    assert told["GPU"].text == "8 x NVIDIA A100-SXM4-80GB, 86 GB, driver 580.65.06"
    assert "driver" not in told


def test_an_old_driver_and_a_broken_one_are_diagnosed(command: Say) -> None:
    command("nvidia-smi", OLD.strip())
    driver = by_subject(machine.hardware())["driver"]
    assert driver.level == "note" and "470.57.02 is too old" in driver.text and "580 or newer" in driver.text
    command("nvidia-smi", "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9)
    gpu = by_subject(machine.hardware())["GPU"]
    assert gpu.text.startswith("none (nvidia-smi says: NVIDIA-SMI has failed")


def test_gpus_that_torch_cannot_use_are_diagnosed(command: Say) -> None:
    command("nvidia-smi", A100.strip())
    assert by_subject(software.packages())["torch"].text.endswith("; of 1 GPUs it can use 0")


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        ((), "; it can use all 3 GPUs"),
        ((1,), "; of 3 GPUs it can use 2 (CUDA error: no kernel image is available for execution on the device)"),
        ((0, 1, 2), "; of 3 GPUs it can use 0 (CUDA error: no kernel image is available for execution on the device)"),
    ],
)
def test_a_gpu_counts_if_torch_computes_on_it(
    command: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: tuple[int, ...], found: str
) -> None:
    """A torch with three GPUs stands in for the real one."""
    (tmp_path / "torch.py").write_text(
        "class cuda:\n"
        "    device_count = staticmethod(lambda: 3)\n"
        "class ones(int):\n"
        "    def __new__(cls, size, device):\n"
        f"        if device[1] in {broken!r}:\n"
        "            raise RuntimeError('CUDA error: no kernel image is available for execution on the device\\n')\n"
        "        return int.__new__(cls, 1)\n"
        "    __add__ = lambda self, other: self\n"
        "    item = int.__int__\n"
    )
    command("nvidia-smi", (A100 * 3).strip())
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert by_subject(software.packages())["torch"].text.endswith(found)


def test_services_that_answer_and_services_that_do_not(command: Say) -> None:
    command("docker", "27.1")
    command("sinfo", "      3 nodes idle  in partition gpu*\n      1 nodes down  in partition gpu*")
    told = by_subject(software.services())
    assert told["docker"].text == "27.1"
    assert told["SLURM"].text == "3 nodes idle in partition gpu*; 1 nodes down in partition gpu*"
    command("docker", "Cannot connect to the Docker daemon", 1)
    assert by_subject(software.services())["docker"] == Diagnosis(
        "docker", "docker is there, its service is not: Cannot connect to the Docker daemon", "note"
    )


def test_a_command_that_hangs_times_out(command: Say) -> None:
    command("sinfo", "")
    hang = Path(os.environ["PATH"]) / "sinfo"
    hang.write_text(f"#!{sys.executable}\nimport signal\nsignal.pause()\n")
    assert machine.run_command("sinfo", timeout_seconds=0.2) == (1, "no answer within 0.2 s")


def test_packages_are_those_of_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Say) -> None:
    monkeypatch.setattr(software, "REPO_ROOT", tmp_path)
    (tmp_path / "requirements").mkdir()
    lock = tmp_path / "requirements/run.txt"
    torch = f"torch=={software._version('torch').split('+')[0]}"
    lock.write_text(f"{torch} \\\n    --hash=sha256:0\n")
    assert by_subject(software.packages())["packages"].text == "all 1 of requirements/run.txt, as pinned"
    lock.write_text(f"{torch}\nno-such-library==1.0\n")
    some = by_subject(software.packages())["packages"]
    assert some.level == "note" and "1 of 2 pinned" in some.text and "(no-such-library)" in some.text
    lock.write_text("no-such-library==1.0\n")
    assert [finding.level for finding in software.packages()] == ["missing"]


def test_a_key_is_reported_but_never_shown(
    checkout: Path, command: Say, unreachable: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 2)
    monkeypatch.delenv("WANDB_MODE")
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert "W&B key              there" in out and "0123456789abcdef" not in out
    assert "can't be reached" in out and "answers" not in out


def tables_of(out: str) -> dict[str, str]:
    """Finding by table, without its sign: "paper table3" -> its words."""
    lines = " ".join(out.partition("what can run here\n")[2].split("\n" + " " * 24)).splitlines()
    return {line[3:23].strip(): line[24:] for line in lines if line[3:8].strip() in ("smoke", "lite", "paper")}


def test_tables_without_data_and_gpu(
    checkout: Path, command: Say, unreachable: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert "are the recipes' first steps right here\n" in out and "smoke preflight      none " in out
    told = tables_of(out)
    assert told["smoke table3"] == "all 10 that this code makes"
    assert told["paper table1"].startswith("all ")  # costs are measured on noise
    assert told["paper table7"].endswith("; missing: a GPU, the data of imagenet")
    assert told["paper table3"].startswith("none of the ")
    assert told["lite table9"].endswith("; missing: the data of imagenet")
    assert told["paper text"].startswith("none of the one number that this code makes")
    assert "the data of inat18" in told["paper table3"] and "the data of voc07" in told["paper table3"]


def test_tables_with_a_gpu_and_some_data(
    checkout: Path, command: Say, unreachable: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command("nvidia-smi", A100.strip())
    for split in ("train", "val"):
        (tmp_path / "datasets/imagenet" / split).mkdir(parents=True)
    for split in ("train", "test"):
        (tmp_path / "datasets/cifar10" / split).mkdir(parents=True)
    assert doctor.main(["--data", str(tmp_path / "datasets")]) == 0
    told = tables_of(capsys.readouterr().out)
    assert told["paper table7"].startswith("all ") and told["lite table9"].startswith("all ")
    assert "imagenet" not in told["paper table3"] and "the data of places205" in told["paper table3"]


def test_a_full_disk_exits_with_1(
    checkout: Path, command: Say, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "MIN_FREE_GB", 1e9)
    assert doctor.main(["--short"]) == 1
    assert "✗ disk" in capsys.readouterr().out


def test_without_a_venv_it_says_what_to_do() -> None:
    command = [sys.executable, "-S", "-m", "reproduce.harness.doctor", "--short"]
    done = subprocess.run(command, cwd=REPO_ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "make setup installs them" in " ".join(done.stdout.split()) and not done.stderr


def test_a_wrong_data_folder_is_refused(checkout: Path) -> None:
    command = [sys.executable, "-m", "reproduce.harness.doctor", "--data", "nowhere"]
    done = subprocess.run(command, cwd=REPO_ROOT, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: the folder nowhere given as DATA is not there\n"


@pytest.mark.parametrize(("size_gb", "level"), [(12, "note"), (13, "ok")])
def test_memory_is_enough_for_the_batches_of_all_gpus(
    tmp_path: Path, command: Say, monkeypatch: pytest.MonkeyPatch, size_gb: int, level: str
) -> None:
    command("nvidia-smi", (A100 * 4).strip())
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: {size_gb * 10**9 // 1024} kB\nMemAvailable: 1024 kB\n")
    monkeypatch.setattr("reproduce.system.usable_cores", lambda: 64)
    told = by_subject(machine.hardware(tmp_path))["memory"]
    assert told.level == level
    says = "15 data-loader workers for each of 4 GPUs hold 12.1 GB pinned (batches of 64 images per GPU)"
    assert (says in told.text) == (level == "note")


@pytest.mark.parametrize(("size_gb", "level"), [(7.0, "note"), (7.2, "ok")])
def test_shared_memory_is_enough_for_the_workers_of_all_gpus(
    tmp_path: Path, command: Say, monkeypatch: pytest.MonkeyPatch, size_gb: float, level: str
) -> None:
    command("nvidia-smi", (A100 * 4).strip())
    (tmp_path / "root/dev/shm").mkdir(parents=True)
    monkeypatch.setattr("reproduce.system.usable_cores", lambda: 64)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(total=size_gb * 1e9, free=1e12))
    told = by_subject(machine.hardware(tmp_path / "root"))["shared memory"]
    assert told.level == level
    says = "15 data-loader workers for each of 4 GPUs hold 7.2 GB there (batches of 64 images per GPU)"
    assert (says in told.text) == (level == "note")
