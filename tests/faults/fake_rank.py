"""Stands in for a rank: fake_rank FOLDER MODE0 MODE1 ... It notes its start and does as the mode of its rank says.

ok; wrong and failed (a sentence, exit status 2 or 3); bug (a traceback); killed; killed-once; preempted (waits for a
signal, notes it and ends with 75); waits (for as long as it is let); waits-once; waits-for-restart (of the others);
stuck (only SIGKILL ends it).
"""

import os
import signal
import sys
import time
from pathlib import Path

folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
mode = sys.argv[2 + rank]
with open(folder / "starts.txt", "a") as starts:
    starts.write(f"{rank}\n")
if mode in ("wrong", "failed"):  # says so even if the launcher stops it because another rank was quicker
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mode not in ("ok", "waits", "waits-once", "waits-for-restart", "preempted", "stuck"):
    # On a busy machine, one that ends early must not stop a late start.
    while (noted := (folder / "starts.txt").read_text().split()).count(str(rank)) > min(
        noted.count(str(other)) for other in range(int(os.environ["WORLD_SIZE"]))
    ):
        time.sleep(0.01)
if mode in ("wrong", "failed"):
    print(
        f"error: {sys.argv[-1] if sys.argv[-1] == 'everywhere' else f'the pictures of {rank} are gone'}",
        file=sys.stderr,
    )
    raise SystemExit(2 if mode == "wrong" else 3)
if mode == "bug":
    raise RuntimeError("a bug")
if mode == "killed" or (mode == "killed-once" and (folder / "starts.txt").read_text().count(str(rank)) == 1):
    os.kill(os.getpid(), signal.SIGKILL)
if mode == "preempted":
    signals = {signal.SIGTERM, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    os.write(1, f"rank {rank} waits\n".encode())  # in one piece; print writes the end of the line by itself
    (folder / f"signal-{rank}").write_text(signal.Signals(signal.sigwait(signals)).name)
    raise SystemExit(75)
if mode == "waits-once" and (folder / "starts.txt").read_text().split().count(str(rank)) == 1:
    os.write(1, f"rank {rank} waits\n".encode())
    signal.pause()
if mode == "waits-for-restart":
    os.write(1, f"rank {rank} waits\n".encode())
    others = {str(other) for other in range(int(os.environ["WORLD_SIZE"]))} - {str(rank)}
    while any((folder / "starts.txt").read_text().split().count(other) < 2 for other in others):
        time.sleep(0.01)
if mode == "waits":
    signal.pause()
if mode == "stuck":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os.write(1, f"rank {rank} was asked to stop\n".encode()))
    os.write(1, f"rank {rank} waits\n".encode())
    while True:
        signal.pause()
