"""One run's folder: its lock, config, curves, and in the end its result or its failure."""

import contextlib
import datetime
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from reproduce.config import config_hash, identity, run_dir, run_id
from reproduce.data import catalogue
from reproduce.engine import provenance
from reproduce.engine.distributed import is_main, world_size
from reproduce.engine.preemption import Preempted
from reproduce.engine.tracking import NoTracker, Tracker
from reproduce.errors import REQUEST_IS_WRONG, TrainingFailed, UserError
from reproduce.files import lock, write_atomic, write_json


class Run:
    """What a running process tells and leaves behind. On ranks other than 0 it is silent."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self.run_id = run_id(cfg)
        self.folder = run_dir(cfg)
        self.started = time.time()
        self.counts: dict[str, int] = {"num_skipped_images": 0}
        self.provenance: dict[str, Any] = {}
        self.last: dict[str, float] = {}
        self._tracker: Tracker | NoTracker = NoTracker()
        self._seen_bad: set[str] = set()
        if is_main():
            write_atomic(self.folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
            (self.folder / "failure.json").unlink(missing_ok=True)
            if cfg.logging.wandb:
                group = cfg.logging.group or cfg.scale.name
                self._tracker = Tracker(self.folder, self.run_id, group, cfg.kind, identity(cfg))

    @property
    def dataset_root(self) -> Path:
        """The folder of the run's dataset; `UserError` where it or one of its parts is missing."""
        missing = catalogue.missing(self.cfg)
        if missing:
            raise UserError(f"data is missing for {self.run_id}: {'; '.join(missing)}")
        return Path(self.cfg.paths.data) / self.cfg.dataset.root

    @property
    def checkpoint(self) -> Path:
        """The run's own checkpoint."""
        return self.folder / "checkpoint.pt"

    def forget_after(self, step: int) -> None:
        """Drop curve points of steps that a resumed run makes again."""
        path = self.folder / "metrics.jsonl"
        if is_main() and path.exists():
            points = [line for line in path.read_text().splitlines() if _step(line) <= step]
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
            raise UserError(
                f"can't decode picture {bad[0]}; mend or remove it, or go on without such files by SKIP_BAD_IMAGES=1 "
                "(python -m reproduce: --skip-bad-images; a run by itself: on_bad_image=skip), counted in the result"
            )
        for name in bad:
            if name not in self._seen_bad:
                print(f"skipped {name}", file=sys.stderr, flush=True)
        self._seen_bad.update(bad)
        self.counts["num_skipped_images"] = len(self._seen_bad)

    def finish(self, metrics: Mapping[str, float], parents: list[str] | None = None) -> None:
        """Write result.json, the sign that the run is done."""
        if not is_main():
            return
        finished = time.time()
        wall = finished - self.started
        result = {
            "run_id": self.run_id,
            "kind": self.cfg.kind,
            "name": self.cfg.name,
            "seed": self.cfg.seed,
            "scale": self.cfg.scale.name,
            "metrics": dict(metrics),
            "counts": self.counts,
            "parents": parents or [],
            "status": "done",
            "started": _iso(self.started),
            "finished": _iso(finished),
            "wall_seconds": round(wall, 2),
            "device_hours": wall * world_size() / 3600,
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
        self._tracker.finish({**metrics, **self.counts, "wall_seconds": wall})
        if self._tracker.problem:
            print(self._tracker.problem, file=sys.stderr)

    def fail(self, status: str, exit_status: int, sentence: str) -> None:
        """Leave the reason behind, where there is room for it; the next attempt removes it."""
        if not is_main():
            return
        with contextlib.suppress(UserError, OSError):
            record = {
                "status": status,
                "exit_status": exit_status,
                "message": sentence,
                "finished": _iso(time.time()),
                "pid": os.getpid(),
            }
            write_json(self.folder / "failure.json", record)


@contextmanager
def running(cfg: DictConfig) -> Iterator[Run]:
    """A run from its lock to its result; whatever ends it early is written to failure.json and raised on."""
    folder = run_dir(cfg)
    with _locked(folder, run_id(cfg)):
        run = Run(cfg)
        try:
            yield run
        except UserError as error:
            run.fail("failed", REQUEST_IS_WRONG, str(error))
            raise
        except Preempted:
            raise
        except TrainingFailed as error:
            run.fail(error.status, 1, str(error))
            raise
        except Exception as error:
            run.fail("failed", 1, f"{type(error).__name__}: {error}")
            raise


@contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    if not is_main():
        yield
        return
    with lock(folder / ".lock", f"run {name}"):
        yield


def _iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return sys.maxsize  # a line cut by a kill goes too
