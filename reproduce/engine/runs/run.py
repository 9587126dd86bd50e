"""One run's folder: its lock, config, curves, and in the end its result or its failure."""

import contextlib
import datetime
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from reproduce.config.compose import Kind, compose
from reproduce.config.identity import config_hash, identity, run_dir, run_id
from reproduce.config.schema import Dataset
from reproduce.config.validate import to_dataclass
from reproduce.data.datasets import catalog
from reproduce.data.datasets.image_folder import ImageList
from reproduce.data.prepare import manifest
from reproduce.engine.distributed.collectives import barrier, is_main, process_group, rank, world_size
from reproduce.engine.distributed.preemption import Preempted, Preemption
from reproduce.engine.runs import provenance, tracking
from reproduce.engine.runs.attempts import Attempts
from reproduce.engine.runs.counts import Counts
from reproduce.engine.runs.tracking import NoTracker, Tracker
from reproduce.errors import REQUEUE, RetryableError, TrainingFailed, Unavailable, UserError, describe_error
from reproduce.files import file_lock, read_json, write_atomic, write_json

SKIPPING = (
    "by SKIP_BAD_IMAGES=1 (python -m reproduce: --skip-bad-images; a run by itself: on_bad_image=skip), counted in the "
    "result"
)


class Run:
    """What a running process tells and leaves behind. Ranks other than 0 are silent, until they fail."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self.run_id = run_id(cfg)
        self.folder = run_dir(cfg)
        self.attempts = Attempts(self.folder)
        self.counts = Counts()
        self.provenance: dict[str, Any] = {}
        self.last: dict[str, float] = {}
        self._tracker: Tracker | NoTracker = NoTracker()
        if is_main():
            for unfinished in self.folder.glob(".*.*"):
                unfinished.unlink()  # left by a kill while writing
            self.attempts.begin()
            write_atomic(self.folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
            (self.folder / "failure.json").unlink(missing_ok=True)
            if cfg.logging.wandb and not tracking.disabled():
                group = cfg.logging.group or cfg.scale.name
                self._tracker = Tracker(
                    self.folder, self.run_id, group, cfg.kind, identity(cfg), self.attempts.tracker_id
                )
        barrier()  # from here on any rank may leave a failure.json

    @property
    def dataset_root(self) -> Path:
        """The folder of the run's dataset; `UserError` where it or one of its parts is missing."""
        missing = catalog.missing(self.cfg)
        if missing:
            raise UserError(f"data is missing for {self.run_id}: {'; '.join(missing)}")
        return Path(self.cfg.paths.data) / self.cfg.dataset.root

    @property
    def checkpoint(self) -> Path:
        """The run's own checkpoint."""
        return self.folder / "checkpoint.pt"

    def quote(self, split: str, pictures: ImageList) -> None:
        """Note in the result which pictures a split is: the hash of its manifest, and when this was verified."""
        if not is_main():
            return
        data, dataset = Path(self.cfg.paths.data), to_dataclass(self.cfg.dataset, Dataset, "dataset")
        found = manifest.of_split(data, dataset, split, pictures, self.folder.parent / ".manifests")
        name = f"{dataset.name}/{split}"
        self.provenance.setdefault("data_manifest_sha256", {})[name] = found["sha256"]
        if "verified" in found:
            self.provenance.setdefault("data_verified", {})[name] = found["verified"]

    def goes_on_with(self, checkpoint_sha256: str) -> None:
        """Note which checkpoint is measured; what was trained on another one, or on an unknown one, goes.

        Or a run whose pretraining was made again would take up what it had trained on the one before, as its own.
        """
        self.provenance["checkpoint_sha256"] = checkpoint_sha256
        if not is_main():
            return
        noted = self.folder / "measures.json"
        measured = {"checkpoint_sha256": checkpoint_sha256}
        if not noted.exists() or read_json(noted) != measured:
            for path in self.folder.glob("checkpoint*"):
                path.unlink()
        write_json(noted, measured)

    def forget_after(self, step: int) -> None:
        """Drop curve points of steps that a resumed run makes again."""
        path = self.folder / "metrics.jsonl"
        if is_main() and path.exists():
            points = [line for line in path.read_text(errors="replace").splitlines() if _step(line) <= step]
            write_atomic(path, "".join(f"{line}\n" for line in points))
            if points:
                values = json.loads(points[-1])
                self.last = {name: value for name, value in values.items() if name not in ("step", "num_steps")}

    def tell(self, step: int, num_steps: int, **values: float) -> None:
        """One point of the curves: metrics.jsonl, W&B and the log."""
        self.last = values
        if not is_main():
            return
        line = json.dumps({"step": step, "num_steps": num_steps, **{k: float(f"{v:.6g}") for k, v in values.items()}})
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(line + "\n")
        self._tracker.log(values, step)
        print(f"step {step}/{num_steps}  " + "  ".join(f"{k} {v:.4g}" for k, v in values.items()), flush=True)

    def skip_or_stop(self, bad: list[str]) -> None:
        """Files that could not be decoded: count them, or stop at the first, by `on_bad_image`."""
        if bad and self.cfg.on_bad_image == "stop":
            raise UserError(f"can't decode picture {bad[0]}; mend or remove it, or go on without such files {SKIPPING}")
        for name in bad:
            if name not in self.counts.skipped_images:
                print(f"skipped {name}", file=sys.stderr, flush=True)
        self.counts.skipped_images.update(bad)

    def drop_or_stop(self, broken: list[str]) -> None:
        """Annotations that are wrong, a sentence each: count them, or stop naming the first, by `on_bad_image`."""
        if broken and self.cfg.on_bad_image == "stop":
            raise UserError(
                f"{len(broken)} broken annotations; the first: {broken[0]}; mend them, or go on without what they "
                f"describe {SKIPPING}"
            )
        for sentence in broken:
            if sentence not in self.counts.broken_annotations:
                print(f"left out: {sentence}", file=sys.stderr, flush=True)
        self.counts.broken_annotations.update(broken)
        self.counts["num_broken_annotations"] = len(self.counts.broken_annotations)

    def finish(self, metrics: Mapping[str, float], parents: list[str] | None = None) -> None:
        """Write result.json, the sign that the run is done. A collective."""
        counts = self.counts.complete()
        if not is_main():
            return
        finished = time.time()
        wall_seconds, device_seconds = self.attempts.totals(finished)
        result = {
            "run_id": self.run_id,
            "kind": self.cfg.kind,
            "name": self.cfg.name,
            "seed": self.cfg.seed,
            "scale": self.cfg.scale.name,
            "metrics": dict(metrics),
            "counts": counts,
            "parents": parents or [],
            "status": "done",
            "started": _iso(self.attempts.first_started),
            "finished": _iso(finished),
            "wall_seconds": round(wall_seconds, 2),
            "device_hours": device_seconds / 3600,
            "num_attempts": self.attempts.number,
            "peak_memory_gb": round(provenance.peak_memory_gb(), 3),
            "provenance": {
                **provenance.code(),
                "packages": provenance.packages(),
                "config_hash": config_hash(self.cfg),
                "data_root": self.cfg.paths.data,
                "hardware": provenance.hardware(),
                "world_size": world_size(),
                "precision": self.cfg.precision,
                **self.provenance,
            },
        }
        write_json(self.folder / "result.json", result)
        self._tracker.finish({**metrics, **counts, "wall_seconds": wall_seconds})
        if self._tracker.problem:
            print(self._tracker.problem, file=sys.stderr)

    def fail(self, status: str, exit_status: int, sentence: str) -> None:
        """Leave the reason behind, where there is room for it; the next attempt removes it.

        Of several ranks the first to fail says why: what ends the others is that they miss it.
        """
        record = {
            "status": status,
            "exit_status": exit_status,
            "message": sentence if world_size() == 1 else f"rank {rank()}: {sentence}",
            "finished": _iso(time.time()),
            "pid": os.getpid(),
        }
        own = self.folder / f".failure-{rank()}.json"
        with contextlib.suppress(UserError, OSError):
            write_json(own, record)
            with contextlib.suppress(FileExistsError):
                os.link(own, self.folder / "failure.json")
            own.unlink()


@contextmanager
def running(cfg: DictConfig) -> Iterator[Run]:
    """A run from its lock to its result; whatever ends it early is written to failure.json and raised on."""
    folder = run_dir(cfg)
    with _locked(folder, run_id(cfg)):
        run = Run(cfg)
        try:
            yield run
        except Preempted:
            raise
        except Exception as error:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises, here too, when a worker has died
            cause = _foreseen(error) or error
            if said := describe_error(cause):
                run.fail(_status(cause), said[1], said[0])
            elif world_size() == 1:
                run.fail("failed", 1, f"{type(error).__name__}: {error}")
            elif (folder / "failure.json").exists():
                raise SystemExit(1) from None  # it only missed another rank, which has said why
            if cause is not error:
                raise cause from error
            raise


def main_of(kind: Kind, work: Callable[[DictConfig, Run, Preemption], None]) -> int:
    """Entry point of a run that can be preempted: overrides on the command line, `result.json` in the run's folder.

    Ends with status 75 where it was preempted: the same command goes on.
    """
    cfg = compose(kind, sys.argv[1:])
    torch.set_num_threads(cfg.cluster.num_threads)
    with process_group():
        try:
            with running(cfg) as run, Preemption(cfg.logging.every_steps) as preemption:
                work(cfg, run, preemption)
        except Preempted as stop:
            if is_main():
                print(stop, file=sys.stderr)
            return REQUEUE
    return 0


def _status(cause: Exception) -> str:
    if isinstance(cause, TrainingFailed):
        return cause.status
    return "unavailable" if isinstance(cause, Unavailable) else "failed"


@contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    if not is_main():
        yield
        return
    with file_lock(folder / ".lock", f"run {name}"):
        yield


def _foreseen(error: Exception) -> Exception | None:
    """In place of torch's own errors about memory that is full and a data-loader worker that died, a sentence."""
    if isinstance(error, torch.OutOfMemoryError):
        return UserError(
            f"a GPU's memory is full ({str(error).splitlines()[0].rstrip('.')}): take more GPUs, precision=bf16, or "
            "cluster.activation_checkpointing=true (docs/memory.md counts what recipes need). Gradient accumulation "
            "is not offered: BatchNorm and Sinkhorn would see the smaller batch"
        )
    told = str(error).startswith("DataLoader worker")
    if not told and not isinstance(error, ConnectionError | EOFError):
        return None
    return RetryableError(
        f"a data-loader worker died ({str(error).splitlines()[0].rstrip(' .') if told else type(error).__name__}); "
        "where memory ran out, lower cluster.num_workers; the same command goes on from the last checkpoint"
    )


def _iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return sys.maxsize  # a line cut by a kill goes too
