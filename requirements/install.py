"""Make .venv hold what a lock pins: python3.11 requirements/install.py run|dev

Standard library only. Does nothing where .venv already holds it; one set-up at a time, others wait. A .venv that was
left half-made by a killed set-up, moved, or installed from another lock is made anew; one that is a link is only used.
"""

from __future__ import annotations  # an older Python must come as far as being told that it is too old

import fcntl
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV, LOG, STAMP = ROOT / ".venv", ROOT / ".venv.log", ROOT / ".venv/locks.json"
LOCKS = ("run", "dev")
"""The second pins all of the first, and more."""
DETECTRON2 = "detectron2"
"""A lock of its own, part of both: built from source on top of them, unless a detectron2 is there already."""
PYTHON_ONLY = ROOT / "requirements/python_only"

TORCH_INDEX = "TORCH_INDEX"
"""Environment variable: the address of a package index whose torch and torchvision (2.14.1+cpu, say) replace PyPI's
CUDA build and the GBs that it brings. The lock has no hashes of these: the index answers for them."""
OF_TORCH = re.compile(r"(torch|torchvision)==")
OF_CUDA = re.compile(r"(triton|nvidia-[\w-]+|cuda-[\w-]+)==")

PIN = re.compile(r"[\w.-]+==[\w.!+]+( --hash=sha256:[0-9a-f]{64})+")


class SetupError(Exception):
    """What went wrong, in one sentence."""


def lock_file(name: str) -> Path:
    """Path of a lock; `build` pins the tools that install the others."""
    return ROOT / "requirements" / f"{name}.txt"


def read(name: str) -> bytes:
    """A lock's bytes, with the sentence for where they are missing."""
    try:
        return lock_file(name).read_bytes()
    except OSError as error:
        raise SetupError(f"cannot read requirements/{name}.txt ({error.strerror}): restore it from git") from error


def pins(name: str) -> list[str]:
    """A lock's requirements, each with its hashes, a line each."""
    lines = [" ".join(line.split()) for line in read(name).decode(errors="replace").replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def verify(name: str) -> None:
    """Raise `SetupError` unless a lock is a list of exact versions, each with its hashes."""
    found = pins(name)
    broken = [pin for pin in found if not PIN.fullmatch(pin)]
    if broken or not found:
        where = f"at {broken[0][:40]!r}" if broken else "(it pins nothing)"
        raise SetupError(f"requirements/{name}.txt is damaged {where}: restore it from git")


def digest(name: str) -> str:
    """Hash of what a lock pins, with the locks that are part of it, whatever their comments."""
    lines = [line for each in ("build", name, DETECTRON2) for line in read(each).splitlines()]
    return hashlib.sha256(b"\n".join(line for line in lines if not line.lstrip().startswith(b"#"))).hexdigest()


def without_cuda(name: str) -> tuple[list[str], list[str]]:
    """A lock less torch and what only its CUDA build needs; and the versions of torch and torchvision."""
    others = [pin for pin in pins(name) if not OF_TORCH.match(pin) and not OF_CUDA.match(pin)]
    return others, [pin.split()[0] for pin in pins(name) if OF_TORCH.match(pin)]


def held() -> dict[str, str]:
    """Digest of each lock that .venv holds completely; empty where .venv is missing, half-made or moved."""
    try:
        stamp = json.loads(STAMP.read_text())
        return stamp["locks"] if stamp["root"] == _place() and (VENV / "bin/python").exists() else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _place() -> str:
    """The checkout that .venv lies in: programs in it name its path. Another one where .venv is a link to its."""
    return str(VENV.resolve().parent)


def call(arguments: list[str], failure: str, lock: int, **environment: str) -> None:
    """Run a command, its output into the log, with a sign of life every 15 s. Raises `SetupError` where it fails.

    `environment` is added to our own. The command holds `lock` as well: should this process alone be killed, the next
    set-up waits for the command to end.
    """
    with open(LOG, "a+") as log:
        before, start = log.tell(), time.monotonic()
        with subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[lock], env=os.environ | environment
        ) as child:
            try:
                while True:
                    try:
                        status = child.wait(timeout=15)
                        break
                    except subprocess.TimeoutExpired:
                        done = len(list(VENV.glob("lib/*/site-packages/*.dist-info")))
                        print(f"  {time.monotonic() - start:.0f} s: {done} packages in .venv", flush=True)
            except BaseException:
                child.terminate()
                raise
        log.seek(before)
        lines = [line.strip() for line in log if line.strip()]
    if status:
        errors = [line for line in lines if line.startswith("ERROR:")] or lines or [f"exit status {status}"]
        raise SetupError(f"{failure}: {errors[-1].replace('ERROR: ', '')} (more in {LOG.name})")


def install(name: str, lock: int) -> None:
    """Bring .venv to a lock: on top of the one that it extends, else from nothing."""
    for each in ("build", name, DETECTRON2):
        verify(each)
    if VENV.is_symlink():
        raise SetupError(
            f".venv is a link to {VENV.resolve()}, which does not hold what requirements/{name}.txt pins: set that one "
            f"up where it lies, or remove the link"
        )
    extends = name != LOCKS[0] and held().get(LOCKS[0]) == digest(LOCKS[0])
    print(f"setting up .venv from requirements/{name}.txt (about 6 GB, a minute or more)", flush=True)
    start = time.monotonic()
    STAMP.unlink(missing_ok=True)  # from here on .venv counts as half-made
    LOG.unlink(missing_ok=True)
    if not extends:
        call([sys.executable, "-m", "venv", "--clear", str(VENV)], f"{sys.executable} could not make .venv", lock)
    pip = [str(VENV / "bin/python"), "-m", "pip", "install", "--progress-bar=off", "--no-deps", "--no-build-isolation"]
    index = os.environ.get(TORCH_INDEX)
    for each in ("build", name):
        wanted, failure = lock_file(each), f"could not install requirements/{each}.txt"
        if index:
            others, of_torch = without_cuda(each)
            wanted = VENV / f"{each}.txt"
            wanted.write_text("\n".join(others))
            if of_torch:
                call([*pip, "--index-url", index, *of_torch], f"{failure} ({TORCH_INDEX} is {index})", lock)
        call([*pip, "--require-hashes", "-r", str(wanted)], failure, lock)
    if not list(VENV.glob("lib/*/site-packages/detectron2")):
        source = [*pip, "--require-hashes", "-r", str(lock_file(DETECTRON2))]
        call(source, f"could not install requirements/{DETECTRON2}.txt", lock, PYTHONPATH=str(PYTHON_ONLY))
    stamp = {"root": _place(), "locks": {each: digest(each) for each in LOCKS[: LOCKS.index(name) + 1]}}
    STAMP.with_suffix(".new").write_text(json.dumps(stamp))
    STAMP.with_suffix(".new").replace(STAMP)
    print(f".venv is ready after {time.monotonic() - start:.0f} s")


def main(arguments: list[str]) -> int:
    """Set up one lock. Raises `SetupError` where that can't be."""
    if sys.version_info < (3, 11):
        raise SetupError(
            f"Python 3.11 is needed, {sys.executable} is {sys.version.split()[0]}: say make PYTHON=python3.11"
        )
    if len(arguments) != 1 or arguments[0] not in LOCKS:
        raise SetupError(f"say which lock: python3.11 requirements/install.py {'|'.join(LOCKS)}")
    (name,) = arguments
    if held().get(name) == digest(name):
        return 0
    with open(ROOT / ".venv.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another set-up of this checkout's .venv to end", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if held().get(name) != digest(name):
            install(name, lock.fileno())
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both end pip too
    try:
        sys.exit(main(sys.argv[1:]))
    except (SetupError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped; the next set-up begins anew", file=sys.stderr)
    sys.exit(2)
