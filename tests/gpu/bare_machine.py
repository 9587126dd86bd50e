"""Run gpu-test, then gpu-bench, on a machine that has a GPU, Python and torch, but no .venv and perhaps no internet.

    python3 tests/gpu/bare_machine.py --wheels wheels --pictures photographs --out out

It uses the machine's own Python (3.11 or newer), torch and torchvision, whatever their versions, and installs into a
temporary folder only what lies in `--wheels`. Without them it lists which packages are missing; fetch their wheels
for the machine's Python elsewhere (`pip download --no-deps --python-version 3.12 --only-binary=:all: -d wheels ...`).
`out/` gets gpu-test.txt, gpu-test.xml, gpu-bench.json and gpu-bench.txt. Exit status: 0 if both passed, 1 if one
failed, 2 if a package is missing. Uses the standard library only.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    "hydra": "hydra-core",
    "omegaconf": "omegaconf",
    "antlr4": "antlr4-python3-runtime",
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "threadpoolctl": "threadpoolctl",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "torch": "torch",
    "torchvision": "torchvision",
    "pycocotools": "pycocotools",
    "pytest": "pytest",
    "xdist": "pytest-xdist",
    "pytest_benchmark": "pytest-benchmark",
    "hypothesis": "hypothesis",
}
"""What the tests import, and the packages that have it. Detectron2 and apex are optional: their tests are skipped."""
STAND_INS = ROOT / "tests/gpu/stand_ins"
"""In place of a torchcodec that does not exist for the machine's torch."""


def install(wheels: Path, site: Path) -> None:
    """Install all wheels of a folder into another, without an index and without what they depend on."""
    found = sorted(str(path) for path in wheels.glob("*.whl"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "--target", str(site), *found], check=True)


def missing_packages(environment: dict[str, str]) -> list[str]:
    """Return the packages whose modules Python does not find in an environment."""
    program = "import importlib.util, sys; print(*[m for m in sys.argv[1:] if not importlib.util.find_spec(m)])"
    command = [sys.executable, "-c", program, *MODULES]
    found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()
    return [MODULES[name] for name in found]


def has_torchcodec(environment: dict[str, str]) -> bool:
    """Return whether torchcodec's JPEG decoder can be imported beside the machine's torch."""
    command = [sys.executable, "-c", "from torchcodec.decoders import decode_jpeg"]
    return subprocess.run(command, env=environment, check=False, capture_output=True).returncode == 0


def run(name: str, command: list[str], environment: dict[str, str], log: Path, seconds: float) -> bool:
    """Run a command with its output on the screen and in `log`; return whether it succeeded within `seconds`."""
    started = time.monotonic()
    pipe, same = subprocess.PIPE, subprocess.STDOUT
    with (
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=same) as process,
        subprocess.Popen(["tee", str(log)], stdin=process.stdout) as tee,
    ):
        try:
            status: int | str = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            status = f"stopped after {seconds:.0f} s"
        with contextlib.suppress(subprocess.TimeoutExpired):
            tee.wait(timeout=10)  # a worker of a killed process may hold the pipe open
        tee.kill()
    outcome = "passed" if status == 0 else f"failed ({status})"
    print(f"{name}: {outcome} in {time.monotonic() - started:.0f} s", flush=True)
    return status == 0


def main(arguments: list[str]) -> int:
    """Install the wheels, then run both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="folder of the wheels that this machine lacks")
    parser.add_argument("--pictures", default="", help="folder of JPEG photographs, for gpu-bench")
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="folder for logs and results")
    parser.add_argument("--only", choices=["test", "bench"], help="run one of the two")
    parser.add_argument("--seconds", type=float, default=480, help="time limit of each of the two")
    parser.add_argument("--device", default="cuda", help="cpu: to try this program out")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu-report-") as site:
        if options.wheels:
            install(options.wheels, Path(site))
        folders = [site, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "TEST_DEVICE": options.device}
        missing = missing_packages(environment)
        if missing:
            print(f"error: this machine has no {', '.join(missing)}: put their wheels into the folder --wheels")
            return 2
        if not has_torchcodec(environment):
            print("torchcodec does not work with this torch: torchvision decodes JPEG files in its place", flush=True)
            environment["PYTHONPATH"] = os.pathsep.join([str(STAND_INS), *folders])
        passed = []
        if options.only != "bench":
            # Other versions warn of other things, which are no errors here.
            report = [
                "-p",
                "no:cacheprovider",
                "-W",
                "default",
                f"--junit-xml={out / 'gpu-test.xml'}",
                "--durations=15",
            ]
            command = [sys.executable, "-m", "pytest", *report, "tests/gpu"]
            passed.append(run("gpu-test", command, environment, out / "gpu-test.txt", options.seconds))
        if options.only != "test":
            command = [sys.executable, "-m", "tests.benchmarks.gpu", "--out", str(out / "gpu-bench.json")]
            command += [
                "--seconds",
                str(options.seconds - 30),
                "--size",
                "paper" if options.device == "cuda" else "tiny",
            ]
            command += ["--pictures", options.pictures] if options.pictures else []
            passed.append(run("gpu-bench", command, environment, out / "gpu-bench.txt", options.seconds))
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
