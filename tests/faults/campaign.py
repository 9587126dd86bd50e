"""A run that is killed over and over: campaign.py SEED NUM_KILLS NUM_STEPS OVERRIDES...

Forks a pretraining from this process, which has imported everything, and kills it with SIGKILL, at moments drawn over
its whole life; every second kill waits for a save to be under way. Each child goes on from where the last one was. Once
killed `NUM_KILLS` times, it is left to end. Prints a line for each kill: the points of its curve, and its files.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from reproduce import pretrain
from reproduce.config.compose import compose
from reproduce.config.identity import run_dir
from reproduce.errors import run_cli

MAX_DELAY_SECONDS = 0.06
"""Some steps at most, so that a run is never far ahead of its next kill."""
STEPS_AFTER = 10
"""Steps left after the last kill's moment: no run may end before it is killed."""


def start(overrides: list[str]) -> int:
    """Fork a pretraining; its process id."""
    child = os.fork()
    if child:
        return child
    sys.argv = ["pretrain", *overrides]
    os._exit(run_cli(pretrain.main))


def kill_once(overrides: list[str], folder: Path, num_points: int, in_a_save: bool, delay: float) -> bool:
    """Start a run and kill it, so many seconds after its curve has so many points (and a save has begun).

    False where it had ended before.
    """
    attempts = folder / "attempts.json"
    before = attempts.stat().st_ino if attempts.exists() else None
    left = set(folder.glob(".checkpoint*"))
    child = start(overrides)

    def saving() -> bool:
        return bool(set(folder.glob(".checkpoint*")) - left)

    def due() -> bool:
        begun = attempts.exists() and attempts.stat().st_ino != before
        return begun and points(folder) >= num_points and (saving() or not in_a_save)

    while True:
        while not due():
            if os.waitpid(child, os.WNOHANG) != (0, 0):
                return False
            time.sleep(0.001)
        time.sleep(delay)
        os.kill(child, signal.SIGSTOP)  # on a busy machine the save may have ended meanwhile: look while nothing moves
        if saving() or not in_a_save:
            break
        os.kill(child, signal.SIGCONT)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def points(folder: Path) -> int:
    """Number of the curve's points so far."""
    metrics = folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def main() -> int:
    """See the head of this file; the exit status is that of the run that was left to end."""
    seed, num_kills, num_steps = map(int, sys.argv[1:4])
    overrides = sys.argv[4:]
    chance = random.Random(seed)
    folder = run_dir(compose("pretrain", overrides))
    for kill in range(num_kills):
        num_points = (num_steps - STEPS_AFTER) * kill // num_kills + chance.randrange(2)
        delay = chance.uniform(0, MAX_DELAY_SECONDS / (10 if kill % 2 else 1))
        if not kill_once(overrides, folder, num_points, kill % 2 == 1, delay):
            print("the run ended before it was killed", file=sys.stderr)
            return 1
        print()  # a line that was cut by the kill ends here
        print("killed", points(folder), *sorted(path.name for path in folder.glob("*checkpoint*")), flush=True)
    return os.waitstatus_to_exitcode(os.waitpid(start(overrides), 0)[1])


if __name__ == "__main__":
    sys.exit(main())
