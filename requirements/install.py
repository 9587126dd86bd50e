"""Install what a lock file pins into .venv: python3.11 requirements/install.py run|dev

pip installs uv, and uv installs the lock, many packages at a time; where uv can't, pip installs it.

Uses the standard library only. Does nothing if .venv already has it. One process installs at a time; others wait. A
.venv that an interrupted installation left incomplete, that was moved, or that was installed from another lock is
created again; one that is a symbolic link is used but never changed.
"""

from __future__ import annotations  # so that an older Python can still report that it is too old

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

import pip_settings

ROOT = Path(__file__).resolve().parent.parent
VENV, LOG, STAMP = ROOT / ".venv", ROOT / ".venv.log", ROOT / ".venv/locks.json"
LOCKS = ("run", "dev")
"""The second pins everything in the first, and more."""
DETECTRON2 = "detectron2"
"""A lock that belongs to both: built from source after them, unless a detectron2 is installed already."""
PYTHON_ONLY = ROOT / "requirements/python_only"

TORCH = "TORCH"
"""Environment variable: `cpu` replaces PyPI's CUDA build of torch and torchvision, and its gigabytes of libraries, by
the CPU builds of torch's own index, whose address uv knows."""
TORCH_INDEX = "TORCH_INDEX"
"""Environment variable: the URL of another package index with such builds (e.g. 2.14.1+cpu). The lock has no hashes for
either: the index is trusted."""
TORCH_PIN = re.compile(r"(torch|torchvision)==")
CUDA_PIN = re.compile(r"(triton|nvidia-[\w-]+|cuda-[\w-]+)==")

PIN = re.compile(r"[\w.-]+==[\w.!+]+( --hash=sha256:[0-9a-f]{64})+")


class SetupError(Exception):
    """The installation failed; `str()` is one sentence about why."""


def lock_file(name: str) -> Path:
    """Return the path of a lock; `build` pins the tools that install the others."""
    return ROOT / "requirements" / f"{name}.txt"


def read_lock(name: str) -> bytes:
    """Return the content of a lock. Raises `SetupError` if it can't be read."""
    try:
        return lock_file(name).read_bytes()
    except OSError as error:
        raise SetupError(f"cannot read requirements/{name}.txt ({error.strerror}): restore it from git") from error


def read_pins(name: str) -> list[str]:
    """Return a lock's requirements, each with its hashes in one line."""
    lines = [
        " ".join(line.split()) for line in read_lock(name).decode(errors="replace").replace("\\\n", " ").splitlines()
    ]
    return [line for line in lines if line and not line.startswith("#")]


def check_lock(name: str) -> None:
    """Raise `SetupError` unless a lock lists exact versions, each with its hashes."""
    found = read_pins(name)
    broken = [pin for pin in found if not PIN.fullmatch(pin)]
    if broken or not found:
        where = f"at {broken[0][:40]!r}" if broken else "(it is empty)"
        raise SetupError(f"requirements/{name}.txt is damaged {where}: restore it from git")


def lock_digest(name: str) -> str:
    """Return a hash of what a lock and the locks that belong to it pin, ignoring comments."""
    lines = [line for each in ("build", name, DETECTRON2) for line in read_lock(each).splitlines()]
    return hashlib.sha256(b"\n".join(line for line in lines if not line.lstrip().startswith(b"#"))).hexdigest()


def split_off_torch(name: str) -> tuple[list[str], list[str]]:
    """Return a lock without torch and its CUDA libraries, and the pinned versions of torch and torchvision."""
    others = [pin for pin in read_pins(name) if not TORCH_PIN.match(pin) and not CUDA_PIN.match(pin)]
    return others, [pin.split()[0] for pin in read_pins(name) if TORCH_PIN.match(pin)]


def installed_digests() -> dict[str, str]:
    """Return the digest of each lock that is fully installed in .venv.

    {} if .venv is missing, incomplete or moved, or has another build of torch than was chosen.
    """
    try:
        stamp = json.loads(STAMP.read_text())
        here = stamp["root"] == _venv_owner() and (VENV / "bin/python").exists()
        as_chosen = torch_choice() in ({}, stamp.get("torch", {}))
        return stamp["locks"] if here and as_chosen else {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def torch_choice() -> dict[str, str]:
    """Return the variables of the environment that choose another build of torch than the lock's."""
    return {name: os.environ[name] for name in (TORCH, TORCH_INDEX) if os.environ.get(name)}


def remembered_choice() -> dict[str, str]:
    """Return the `torch_choice` that .venv was made with; {} if it is not known."""
    try:
        found = json.loads(STAMP.read_text())["torch"]
        return {name: str(found[name]) for name in (TORCH, TORCH_INDEX) if name in found}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _venv_owner() -> str:
    """Return the checkout that contains .venv, or the one that .venv links into: its programs contain that path."""
    return str(VENV.resolve().parent)


def run_logged(arguments: list[str], failure: str, lock: int, **environment: str) -> None:
    """Run a command, write its output to the log, and report progress every 15 s. Raises `SetupError` if it fails.

    `environment` is added to the current one. The command inherits the file lock: if only this process is killed, the
    next installation waits until the command ends.
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
                        print(f"  {time.monotonic() - start:.0f} s: {last_line(LOG)}", flush=True)
            except BaseException:
                child.terminate()
                raise
        log.seek(before)
        lines = [line.strip() for line in log if line.strip()]
    if status:
        raise SetupError(f"{failure}: {what_failed(lines) or f'exit status {status}'} (more in {LOG.name})")


def what_failed(lines: list[str]) -> str:
    """Return the last error in a log, and its first cause, which names the address that could not be read."""
    numbers = [number for number, line in enumerate(lines) if re.match(r"(ERROR|error):|[×╰]", line)]
    last = numbers[-1] if numbers else len(lines) - 1
    found = [re.sub(r"^(ERROR|error): |^[^a-zA-Z]*", "", line) for line in lines[last : last + 1]]
    found += [line.removeprefix("cause: ") for line in lines[last + 1 : last + 2] if line.startswith("cause: ")]
    return ": ".join(found)


def last_line(log: Path) -> str:
    """Return what an installation says that it does."""
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip()[:100] for line in reversed(lines) if line.strip()), "")


class Installer:
    """Installs locks into .venv: by uv, or by pip once uv has failed."""

    def __init__(self, lock: int) -> None:
        self._lock, self._uv = lock, VENV / "bin/uv"
        self._uv_works = self._uv.exists()
        self._python = str(VENV / "bin/python")
        self._variables, self._arguments = pip_settings.for_uv(pip_settings.settings(self._python))

    def install(self, what: str, *arguments: str, needs_uv: bool = False, **environment: str) -> None:
        """Install what pip's and uv's common arguments name. Raises `SetupError` if it can't be."""
        failure, common = f"could not install {what}", ["--no-deps", "--no-build-isolation", *arguments]
        if self._uv_works:
            uv = [str(self._uv), "pip", "install", "--python", self._python, "--index-strategy", "unsafe-best-match"]
            try:
                run_logged([*uv, *self._arguments, *common], failure, self._lock, **{**self._variables, **environment})
                return
            except (SetupError, OSError) as error:
                if needs_uv:
                    raise SetupError(f"{error}; {TORCH_INDEX}=URL names another index of CPU builds") from error
                print(f"uv: {error}; pip tries it now, one package after another", flush=True)
                self._uv_works = False
        elif needs_uv:
            raise SetupError(f"{failure} without uv, which knows where CPU builds of torch are: give {TORCH_INDEX}")
        pip = [self._python, "-m", "pip", "install", "--progress-bar=off"]
        run_logged([*pip, *common], failure, self._lock, **environment)

    def install_lock(self, name: str) -> None:
        """Install a lock; torch and torchvision from another index, without hashes, if the environment says so."""
        what, wanted = f"requirements/{name}.txt", lock_file(name)
        backend, index = os.environ.get(TORCH), os.environ.get(TORCH_INDEX)
        if backend or index:
            others, torch_pins = split_off_torch(name)
            wanted = VENV / f"{name}.txt"
            wanted.write_text("\n".join(others))
            if torch_pins and index:
                self.install(f"{what} ({TORCH_INDEX} is {index})", "--index-url", index, *torch_pins)
            elif torch_pins:
                self.install(f"{what} ({TORCH}={backend})", f"--torch-backend={backend}", *torch_pins, needs_uv=True)
        self.install(what, "--require-hashes", "-r", str(wanted))


def install_lock(name: str, lock: int) -> None:
    """Install a lock into .venv, on top of the lock that it extends if that is installed, else into a new .venv."""
    for each in ("build", name, DETECTRON2):
        check_lock(each)
    if os.environ.get(TORCH) not in (None, "", "cpu"):
        raise SetupError(f"{TORCH}={os.environ[TORCH]} is unknown: there is {TORCH}=cpu; without it torch has CUDA")
    if VENV.is_symlink():
        raise SetupError(
            f".venv is a link to {VENV.resolve()}, which lacks what requirements/{name}.txt pins: run make there, "
            f"or remove the link"
        )
    if not torch_choice() and (before := remembered_choice()):
        words = " ".join(f"{variable}={value}" for variable, value in before.items())
        print(f"torch comes from where it came from before ({words}); make clean forgets that", flush=True)
        os.environ.update(before)
    extends = name != LOCKS[0] and installed_digests().get(LOCKS[0]) == lock_digest(LOCKS[0])
    print(f"setting up .venv from requirements/{name}.txt (a minute or less)", flush=True)
    start = time.monotonic()
    STAMP.unlink(missing_ok=True)  # from here on .venv counts as incomplete
    LOG.unlink(missing_ok=True)
    if not extends:
        run_logged(
            [sys.executable, "-m", "venv", "--clear", str(VENV)], f"{sys.executable} could not create .venv", lock
        )
        pip = [str(VENV / "bin/python"), "-m", "pip", "install", "--progress-bar=off", "--no-deps", "--require-hashes"]
        run_logged([*pip, "-r", str(lock_file("build"))], "could not install requirements/build.txt", lock)
    installer = Installer(lock)
    installer.install_lock(name)
    if not list(VENV.glob("lib/*/site-packages/detectron2")):
        source = ("--require-hashes", "-r", str(lock_file(DETECTRON2)))
        installer.install(f"requirements/{DETECTRON2}.txt", *source, PYTHONPATH=str(PYTHON_ONLY))
    locks = {each: lock_digest(each) for each in LOCKS[: LOCKS.index(name) + 1]}
    stamp = {"root": _venv_owner(), "locks": locks, "torch": torch_choice()}
    STAMP.with_suffix(".new").write_text(json.dumps(stamp))
    STAMP.with_suffix(".new").replace(STAMP)
    packages = len(list(VENV.glob("lib/*/site-packages/*.dist-info")))
    print(
        f".venv is ready after {time.monotonic() - start:.0f} s: {packages} packages, {size_gb(VENV):.1f} GB in {VENV}"
    )


def size_gb(folder: Path) -> float:
    """Return the size of the files below a folder."""
    files = (os.path.join(where, name) for where, _, names in os.walk(folder) for name in names)
    return sum(os.lstat(file).st_size for file in files) / 1e9


def main(arguments: list[str]) -> int:
    """Install the lock that the command line names. Raises `SetupError` if that fails."""
    if sys.version_info < (3, 11):
        raise SetupError(
            f"Python 3.11 is needed, but {sys.executable} is {sys.version.split()[0]}: use make PYTHON=python3.11"
        )
    if len(arguments) != 1 or arguments[0] not in LOCKS:
        raise SetupError(f"usage: python3.11 requirements/install.py {'|'.join(LOCKS)}")
    (name,) = arguments
    if installed_digests().get(name) == lock_digest(name):
        return 0
    with open(ROOT / ".venv.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another installation into this checkout's .venv to end", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if installed_digests().get(name) != lock_digest(name):
            install_lock(name, lock.fileno())
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that both also stop pip
    try:
        sys.exit(main(sys.argv[1:]))
    except (SetupError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped; the next installation starts again", file=sys.stderr)
    sys.exit(2)
