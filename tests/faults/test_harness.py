"""The real Snakemake over runs that only pretend: each once, the rest goes on, and every way of being stopped."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reproduce.files import file_lock
from reproduce.harness.execute import process_group
from reproduce.harness.execute.events import EVENTS
from reproduce.harness.execute.supervision import is_locked
from reproduce.harness.plan import build
from reproduce.harness.plan.model import CACHE, Plan, Request
from reproduce.harness.verdict import check
from reproduce.system import REPO_ROOT

FAKE = Path(__file__).with_name("fake_run.py")

HARNESS = """
import os
import sys
from pathlib import Path
from reproduce import __main__ as command_line
from reproduce import forking
from reproduce.engine.runs import tracking
from reproduce.errors import run_cli
from reproduce.harness.plan.model import Run
from reproduce.harness.spec import baseline

fake, modes = sys.argv[1], dict(item.split("=") for item in sys.argv[2].split(";") if item)

def command(run):
    seconds, _, mode = next((what for name, what in modes.items() if name in run.label), "0:ok").partition(":")
    program = ["-m", "tests.faults.fake_run"] if os.environ.get("AS_MODULE") else [fake]
    return [sys.executable, *program, run.folder, seconds, mode, "20" if run.parent_name == "random" else "50"]

Run.command = command
forking.SERVER_MODULE = "tests.faults.light_server"
tracking.log_table = lambda *verdicts: None
baseline.path = lambda scale: Path("recorded.yaml")
raise SystemExit(run_cli(lambda: command_line.main(sys.argv[3:])))
"""
"""`python -m reproduce`, but for W&B and for what a run's process is: "knn=9:ok" lets every kNN take nine seconds."""

PATIENCE_SECONDS = 120


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, composed_here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of one's own, with its pictures there."""
    monkeypatch.chdir(tmp_path)
    data = Path(build.build_plan(Request((), "smoke")).data_root)
    data.mkdir(parents=True)
    (data / "manifest.json").write_text("{}")
    return tmp_path


@pytest.fixture(params=[False, True], ids=["started", "forked"])
def any_start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs are processes that Python starts, or forks of the server, which ends with the harness."""
    monkeypatch.setenv("AS_MODULE", "1" if request.param else "")
    yield
    server = Path("server.txt")
    assert server.exists() == request.param
    assert not (CACHE / "fork_server.socket").exists()
    if request.param:
        wait_for(lambda: not Path("/proc", server.read_text()).exists())


def popen(modes: str, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(REPO_ROOT)}
    command = [sys.executable, "-c", HARNESS, str(FAKE), modes, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def harness(modes: str, *arguments: str) -> tuple[int, str]:
    process = popen(modes, *arguments)
    out, _ = process.communicate(timeout=2 * PATIENCE_SECONDS)
    return process.returncode, out


@contextmanager
def started(modes: str, *arguments: str, until: str) -> Iterator[subprocess.Popen[str]]:
    """A harness in the background, from the moment on that a run named `until` has started."""
    process = popen(modes, *arguments)
    try:
        wait_for(lambda: any(name.startswith(until) for name in starts()) or process.poll() is not None)
        assert process.poll() is None, process.communicate()[0]
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def starts() -> list[str]:
    path = Path("starts.txt")
    return path.read_text().split() if path.exists() else []


def plan() -> Plan:
    return build.build_plan(Request(("table7",), "smoke"))


def running() -> list[str]:
    """Runs that a process still works on."""
    return [run.label for run in plan().runs.values() if is_locked(Path(run.folder) / "fake.lock")]


@pytest.mark.parametrize("own", ["", "glibc.malloc.arena_max=2"])
def test_huge_pages_unless_glibc_tunables_are_set(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if own:
        monkeypatch.setenv("GLIBC_TUNABLES", own)
    assert harness("", "run", "table7")[0] == 0
    assert Path("tunables.txt").read_text() == (own or "glibc.malloc.hugetlb=1")


def test_checkout_path_with_shell_characters(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = checkout / "it's here; touch caught $(touch caught)"
    shutil.copytree(CACHE, odd / CACHE)
    monkeypatch.chdir(odd)
    assert harness("", "run", "table7")[0] == 0
    assert all(run.result.exists() for run in plan().runs.values())
    assert not list(checkout.rglob("caught"))


def test_concurrent_runs_get_distinct_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of four GPUs, as CUDA_VISIBLE_DEVICES allows; each is one run's at a time, though cores abound."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    lines = "".join(f"A, 80000, 550.1, GPU-{number}\\n" for number in range(4))
    (bin_folder / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{lines}'\n")
    (bin_folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, 3")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    status, out = harness("linear=.3:ok;voc=.3:ok", "reproduce", "table3", "--cores", "8")
    assert status == check.AGREES, out
    assert "12 of 12 runs to do on 8 cores and 2 GPUs" in out
    told = [line.split() for line in Path("devices.txt").read_text().splitlines()]
    assert {device for _, device in told} == {"1", "3"}
    now: set[str] = set()
    for what, device in told:
        if what == "begin":
            assert device not in now
            now.add(device)
        else:
            now.remove(device)
    status, out = harness("", "run", "table7", "--seeds", "2", "--cluster-options", "num_processes=3")
    assert status == 2 and "takes 3 processes, each with a GPU of its own, and there are 2 GPUs" in out


def test_a_failed_run_stops_only_its_children() -> None:
    modes = "voc07_svm=0:wrong;knn_head of random=0:crash-once;linear_inat18 of random=0:silent"
    status, out = harness(modes, "reproduce", "table3", "table7", "--cores", "4")
    assert status == check.INCOMPLETE, out
    whole = build.build_plan(Request(("table3", "table7"), "smoke"))
    times = Counter(starts())
    assert {whole.runs[name].label: count for name, count in times.items() if count > 1} == {
        "knn_head of random, seed 0": 2,  # a crash is tried again; a wrong request is not
        "linear_inat18 of random, seed 0": 2,
    }
    assert set(times) == set(whole.runs)
    assert out.count("failed  voc07_svm of ") == 2 and "the pictures are gone" in out
    assert "failed  linear_inat18 of random, seed 0: the process exited with 0 but wrote no result.json" in out
    assert "11 runs done, 3 failed" in out
    assert out.splitlines()[-1] == "report: reports/smoke/index.html"
    verdicts = {(judged.verdict, row.method, key) for t in check.check_tables(whole) for row, key, judged in t.cells()}
    failed = sorted((method, key) for verdict, method, key in verdicts if verdict == "failed")
    assert failed == [("Random trunk", "inat18"), ("Random trunk", "voc07"), ("SwAV", "voc07")]

    status, out = harness("", "reproduce", "table3", "table7", "--cores", "4")
    assert status == check.AGREES, out
    assert "3 of 14 runs to do" in out
    assert sum((Counter(starts()) - times).values()) == 3
    assert not list(Path("results").rglob("failure.json"))

    status, out = harness("", "run", "table3", "table7")
    assert (status, "all 14 runs are done" in out) == (0, True)


def test_printed_collapse_counts_as_done(checkout: Path) -> None:
    """Table 10's one iteration: trained once, never again, and its evaluation never starts."""
    for split in ("train", "val"):
        (checkout / "mine" / "imagenet" / split).mkdir(parents=True)
    asked = ("run", "table10", "--scale", "paper", "--data", "mine", "--cores", "4")
    status, out = harness("sinkhorn10=0:ok;sinkhorn1=0:collapsed", *asked)
    assert status == 0, out
    before = starts()
    assert sorted(name.rpartition("-s0-")[0] for name in before) == [
        *["linear_imagenet"] * 3,
        *("swav_400ep_2x160_4x96", "swav_400ep_sinkhorn1", "swav_400ep_sinkhorn10", "swav_400ep_sinkhorn30"),
    ]
    status, out = harness("", *asked)
    assert (status, starts()) == (0, before) and "all 8 runs are done" in out
    next(Path("results/paper").glob("swav_400ep_sinkhorn30-*/result.json")).unlink()
    status, out = harness("", *asked)
    assert status == 0, out
    assert {name.rpartition("-s0-")[0] for name in starts()[len(before) :]} == {
        *("swav_400ep_sinkhorn30", "linear_imagenet"),
    }


def test_failed_pretraining_fails_its_evaluations() -> None:
    status, out = harness("swav_800ep, =0:wrong", "reproduce", "table7", "--cores", "2")
    assert status == check.INCOMPLETE
    assert "swav_800ep, seed 0 failed: the pictures are gone" in out
    assert Counter(starts()).most_common(1)[0][1] == 1


@pytest.mark.usefixtures("any_start")
def test_killed_harness_resumes() -> None:
    with started("knn_head of=60:ok", "run", "table7", "--cores", "2", until="knn_head") as process:
        wait_for(lambda: len(running()) == 2)  # one that is just being started would count as started again
        process.kill()
        process.wait()
        before = starts()
        done = {run.run_id for run in plan().runs.values() if run.result.exists()}
        status, out = harness("", "run", "table7", "--cores", "2")
    assert status == 0, out
    again = starts()[len(before) :]
    assert done and set(again) == set(plan().runs) - done  # what was done stands, what was cut off is done again
    assert len(again) == len(set(again))
    assert running() == []


@pytest.mark.usefixtures("any_start")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_harness_leaves_no_process(number: signal.Signals) -> None:
    with started("knn_head of=60:ok", "reproduce", "table7", "--cores", "2", until="knn_head") as process:
        process.send_signal(number)
        out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130, out
    assert "the same command continues from there" in out
    assert running() == []
    assert not list(Path("results").rglob("failure.json"))  # stopped is not failed


@pytest.mark.usefixtures("any_start")
def test_preempted_run_is_restarted_not_failed() -> None:
    status, out = harness("knn_head of=0:preempted-once", "run", "table7", "--cores", "2")
    assert status == 0, out
    names = [run.run_id for run in plan().runs.values() if run.label.startswith("knn_head of")]
    assert names and [Counter(starts())[name] for name in names] == [2] * len(names)
    assert out.count("it was preempted, and resumes from its checkpoint") == len(names)
    assert "failed" not in out.replace("0 failed", "")
    for name in names:
        log = (Path(plan().runs[name].folder) / "log.txt").read_text()
        assert "=== preempted; to be started again" in log
        assert log.count("attempt 1:") == 2 and "attempt 2:" not in log


@pytest.mark.usefixtures("any_start")
def test_stopped_harness_restarts_no_preempted_run() -> None:
    with started("knn_head of=60:preempted-when-asked", "run", "table7", "--cores", "2", until="knn_head") as process:
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130, out
    assert max(Counter(starts()).values()) == 1
    assert running() == []
    assert not list(Path("results").rglob("failure.json"))


def test_second_harness_is_refused() -> None:
    Path(".cache").mkdir(exist_ok=True)
    with file_lock(Path(".cache/harness.lock"), "a harness"):
        status, out = harness("", "run", "table7")
    assert status == 2
    assert f"error: a harness is already running here (process {os.getpid()}" in out
    assert starts() == []


def test_truncated_result_is_named_and_kept() -> None:
    assert harness("", "run", "table7", "--cores", "4")[0] == 0
    cut = next(run for run in plan().runs.values() if run.name == "knn_head").result
    cut.write_text(cut.read_text()[:20])
    for command in ("reproduce", "run", "check", "plan"):
        status, out = harness("", command, "table7")
        assert status == 2
        assert f"error: {cut} is cut short" in out.splitlines()[-1]
    assert len(cut.read_text()) == 20


@pytest.mark.parametrize("folder", ["results", "reports", CACHE.name])
def test_unwritable_folder_is_named(checkout: Path, folder: str) -> None:
    """In /sys not even root makes a folder. (Of .cache, the part that is there already can be read.)"""
    kept = checkout / "kept"
    if Path(folder).exists():
        Path(folder).rename(kept)
    Path(folder).symlink_to("/sys")
    for command in ("reproduce", "run"):
        status, out = harness("", command, "table7")
        assert status == 2
        (said,) = [line for line in out.splitlines() if "error" in line.lower()]
        assert re.match(rf"error: .*{folder}/\S+.*: permission is denied; fix its permissions", said), out
    assert starts() == []


def test_failed_image_generation_is_reported(checkout: Path) -> None:
    """The generator itself is refused here: its folder is a file."""
    manifest = next(Path(".cache").rglob("manifest.json"))
    manifest.unlink()
    manifest.parent.rmdir()
    manifest.parent.write_text("in the way")
    status, out = harness("", "run", "table7")
    assert status == 2
    assert "error: the workflow ended before its runs" in out
    assert starts() == []


def test_a_run_of_another_process_is_waited_for() -> None:
    run = next(run for run in plan().runs.values() if run.name == "random")
    events = Path("reports/smoke") / EVENTS
    with file_lock(Path(run.folder) / ".lock", "the run"):
        process = popen("", "run", "table7", "--cores", "4")
        wait_for(lambda: events.exists() and '"wait"' in events.read_text())
        subprocess.run([sys.executable, str(FAKE), run.folder, "0", "ok"], check=True)
    out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, out
    assert f"waiting for another process that runs {run.label}" in out
    assert Counter(starts())[run.run_id] == 1


def test_sigkill_after_ignored_sigterm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_group, "GRACE_SECONDS", 0.2)
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None and process.stdout.readline() == b"here\n"
    process_group.stop_process_group(process)
    assert process.returncode == -signal.SIGKILL
    process.stdout.close()


def test_run_ended_by_sigkill_reports_the_signal(tmp_path: Path) -> None:
    suicide = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    assert process_group.run_process(suicide, tmp_path / "run") == 128 + 9
    for number, handler in before.items():
        signal.signal(number, handler)
    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert failure["message"] == "the process was ended by SIGKILL; the machine may have run out of memory"


def test_usage_errors_are_final(tmp_path: Path) -> None:
    failure = tmp_path / "failure.json"
    assert not process_group.is_final_failure(failure)
    for said, final in (({"exit_status": 2}, True), ({"exit_status": 3}, True), ({"exit_status": 1}, False)):
        failure.write_text(json.dumps(said))
        assert process_group.is_final_failure(failure) is final


def test_checkpoint_hash_not_mtime_decides_what_is_done() -> None:
    """Files' times are a copy's; what the results say of their checkpoints counts, for Snakemake, too."""
    assert harness("", "run", "table7")[0] == 0
    first = starts()
    runs = plan().runs.values()
    for run in runs:
        os.utime(run.result, (2**30, 2**30 + (not run.parents)))
    assert harness("", "run", "table7")[0] == 0
    assert starts() == first
    for run in runs:
        measured = plan().runs[run.parents[0]] if run.parents else run
        sha = "made again" if run.name == "swav_800ep" else f"first of {measured.name}"
        result = json.loads(run.result.read_text()) | {"provenance": {"checkpoint_sha256": sha}}
        run.result.write_text(json.dumps(result))
    for run in runs:
        os.utime(run.result, (2**30, 2**30 - (not run.parents)))
    status, out = harness("", "run", "table7")
    assert status == 0 and "1 of 4 runs to do" in out
    (again,) = starts()[len(first) :]
    assert again.startswith("knn_head-") and plan().runs[again].parent_name == "swav_800ep"
