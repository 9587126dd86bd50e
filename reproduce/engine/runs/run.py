"""One run: its folder with lock, config, metrics and result, from the command line to the exit status."""

import math
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from reproduce import run_images
from reproduce.config import RunKind
from reproduce.config.command_line import config_from_command_line
from reproduce.config.identity import config_hash, identity, run_dir, run_id
from reproduce.config.schema import Dataset
from reproduce.config.validate import to_dataclass
from reproduce.data.datasets import catalog
from reproduce.data.datasets.content import content_cache, split_hashes, split_states_sha256
from reproduce.data.datasets.image_folder import ImageList
from reproduce.data.datasets.manifest import split_manifest
from reproduce.engine.arithmetic import configure_torch
from reproduce.engine.distributed.collectives import barrier, is_main, others_wait, process_group, world_size
from reproduce.engine.distributed.processes import prepare_process
from reproduce.engine.first_steps import FirstSteps
from reproduce.engine.preemption import Preempted, Preemption
from reproduce.engine.runs import picture_files, result, tracking
from reproduce.engine.runs.attempts import Attempts
from reproduce.engine.runs.counts import Counts
from reproduce.engine.runs.metrics_log import MetricsLog
from reproduce.engine.runs.picture_files import Picture, only_warn
from reproduce.engine.runs.provenance import Origin
from reproduce.engine.runs.tracking import NoTracker, Tracker
from reproduce.errors import REQUEUE, RetryableError, UserError, describe_error
from reproduce.files import file_lock, read_json, write_atomic, write_json

HOW_TO_SKIP = (
    "SKIP_BAD_IMAGES=1 (python -m reproduce: --skip-bad-images; a single run: on_bad_image=skip); the result counts "
    "what was skipped"
)


class Run:
    """A run that is under way: what it records, and its folder. Only rank 0 writes, except for failures."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self.run_id, self.config_hash = run_id(cfg), config_hash(cfg)
        self.folder = run_dir(cfg)
        self.attempts = Attempts(self.folder)
        self.counts = Counts()
        self.first_steps = FirstSteps()
        self.origin = Origin.now() if is_main() else None
        self.provenance: dict[str, Any] = {}
        """What this run adds to the provenance of its result."""
        self._file_states: dict[str, str] = {}
        """A hash of the sizes and dates of each split's files when this process began to read them."""
        self._tracker: Tracker | NoTracker = NoTracker()
        if self.origin:
            for unfinished in [*self.folder.glob(".*.*"), *self.folder.glob(f"{run_images.PICTURES}/.*.*")]:
                unfinished.unlink()  # left by a kill during a write
            self.attempts.begin(self.origin.code.summary())
            write_atomic(self.folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
            (self.folder / "failure.json").unlink(missing_ok=True)
            if cfg.logging.wandb and not tracking.is_disabled():
                group = cfg.logging.wandb_group or cfg.scale
                self._tracker = Tracker(
                    self.folder, self.run_id, group, cfg.kind, identity(cfg), self.attempts.wandb_id
                )
        self.metrics = MetricsLog(self.folder / "metrics.jsonl", self._tracker)
        barrier()  # no rank may write failure.json before rank 0 has deleted the old one

    @property
    def checkpoint(self) -> Path:
        """The run's own checkpoint."""
        return self.folder / "checkpoint.pt"

    @property
    def dataset(self) -> Dataset:
        """The run's dataset, as the data config describes it."""
        return to_dataclass(self.cfg.dataset, Dataset, "dataset")

    @property
    def dataset_root(self) -> Path:
        """The folder of the run's dataset. Raises `UserError` if it or one of its parts is missing."""
        missing = catalog.missing_data(self.dataset, self.cfg.paths.data_root, self.cfg.data.name)
        if missing:
            raise UserError(f"data is missing for {self.run_id}: {'; '.join(missing)}")
        return Path(self.cfg.paths.data_root) / self.dataset.root

    def record_split(self, split: str, images: ImageList) -> None:
        """Record in the result which images a split has: their content, and when data-verify last checked the files.

        Checkpoints that an earlier attempt trained or scored on other images are set aside. Print what was passed over.
        """
        if not is_main():
            return
        data, dataset = Path(self.cfg.paths.data_root), self.dataset
        with others_wait(f"looks up the sizes of the files of {dataset.name}/{split}"):
            found = split_manifest(data, dataset, split, images)
            content, states = split_hashes(data, dataset, split, content_cache(self.folder))
        name = f"{dataset.name}/{split}"
        self.provenance.setdefault("data_manifest_sha256", {})[name] = found["sha256"]
        self.provenance.setdefault("data_content_sha256", {})[name] = content
        self._file_states[split] = states
        if "verified" in found:
            self.provenance.setdefault("data_verified", {})[name] = found["verified"]
        if images.passed_over:
            print(images.passed_over, file=sys.stderr, flush=True)
            self.provenance.setdefault("data_passed_over", {})[name] = images.passed_over
        if aside := run_images.start_over_on_other_images(self.folder, name, content):
            print(
                f"{name} has other images than before: starting over; the earlier files are in {aside}", file=sys.stderr
            )
            self.resumed_from(0)

    def discard_checkpoints_of_other_trunk(self, trunk_sha256: str) -> None:
        """Record the evaluated checkpoint; delete our own checkpoints if they were trained from another one.

        Without this, an evaluation whose pretraining was repeated would resume from the old trunk.
        """
        self.provenance["checkpoint_sha256"] = trunk_sha256
        if not is_main():
            return
        record = self.folder / "measures.json"
        trained_from = {"checkpoint_sha256": trunk_sha256}
        if not record.exists() or read_json(record) != trained_from:
            for path in self.folder.glob("checkpoint*"):
                path.unlink()
            self.resumed_from(0)
        write_json(record, trained_from)

    def resumed_from(self, step: int) -> None:
        """Note from which step a run goes on: from 0, nothing of the earlier attempts is in its result.

        A run that does not say so counts as resumed.
        """
        if self.origin and step == 0:
            self.attempts.start_over(self.origin.code.summary())

    def handle_unreadable_images(self, names: list[str]) -> None:
        """Count images that can't be decoded, or raise `UserError` at the first, as `on_bad_image` says."""
        if names and self.cfg.on_bad_image == "stop":
            raise UserError(f"can't decode image {names[0]}; repair or remove it, or skip such images: {HOW_TO_SKIP}")
        for name in names:
            if name not in self.counts.skipped_images:
                print(f"skipped {name}", file=sys.stderr, flush=True)
        self.counts.skipped_images.update(names)

    def handle_bad_annotations(self, problems: list[str]) -> None:
        """Count annotations that are wrong, or raise `UserError` that quotes the first, as `on_bad_image` says."""
        if problems and self.cfg.on_bad_image == "stop":
            raise UserError(
                f"{len(problems)} broken annotations; the first: {problems[0]}; repair them, or skip what they "
                f"describe: {HOW_TO_SKIP}"
            )
        for problem in problems:
            if problem not in self.counts.broken_annotations:
                print(f"left out: {problem}", file=sys.stderr, flush=True)
        self.counts.broken_annotations.update(problems)
        self.counts["num_broken_annotations"] = len(self.counts.broken_annotations)

    def wants_picture(self, name: str) -> bool:
        """Return whether this rank writes pictures, and the run does not have this one yet."""
        return is_main() and not picture_files.words_path(self.folder, name).exists()

    def add_picture(self, picture: Picture) -> None:
        """Write a picture into the run's folder and log it to W&B."""
        picture_files.write_picture(self.folder, picture)
        self._tracker.log_pictures(self.folder, [picture.name], step=0)

    def record_thresholds(self, thresholds: Mapping[str, Any]) -> None:
        """Write what the collapse detector watches for, which the report draws into the curves."""
        if is_main():
            with only_warn("the collapse detector's thresholds"):
                write_json(self.folder / picture_files.THRESHOLDS_FILE, thresholds)
                self._tracker.add_config({"collapse_thresholds": thresholds})

    def finish(self, metrics: Mapping[str, float], parents: list[str] | None = None) -> None:
        """Write result.json, which marks the run as done. A collective."""
        counts = self.counts.gather()
        if self.origin is None:
            return
        if touched := self._touched_splits():
            print(f"warning: files of {', '.join(touched)} changed while {self.run_id} read them", file=sys.stderr)
            self.provenance["data_changed"] = touched
        if self.cfg.kind == "evaluate":
            _require_numbers(metrics)
        content = result.build_result(
            self.cfg,
            self.run_id,
            self.config_hash,
            metrics,
            counts,
            parents or [],
            self.attempts,
            self.first_steps.values(),
            self.origin,
            self.provenance,
        )
        write_json(self.folder / "result.json", content)
        self.attempts.end_with_result(self.origin.code.summary())
        (self.folder / run_images.RECORD).unlink(missing_ok=True)  # the result has it, too
        self._tracker.finish({**metrics, **counts, "wall_seconds": content["wall_seconds"]})
        if self._tracker.problem:
            print(self._tracker.problem, file=sys.stderr)

    def _touched_splits(self) -> list[str]:
        """Return the splits of which a file changed, came or went since this process began to read them."""
        data = Path(self.cfg.paths.data_root)
        touched = []
        for split, before in self._file_states.items():
            try:
                now = split_states_sha256(data, self.dataset, split)
            except (UserError, RetryableError, OSError):  # the folder is gone, or nobody can tell
                now = ""
            if now != before:
                touched.append(f"{self.dataset.name}/{split}")
        return touched


def _require_numbers(metrics: Mapping[str, float]) -> None:
    """Raise `UserError` unless there is a metric, and all are finite."""
    if not metrics:
        raise UserError("the evaluation measured nothing: its test set has no object that can be scored")
    if wrong := [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]:
        raise UserError(f"the evaluation has no result ({', '.join(wrong)}): check the checkpoint and the test images")


@contextmanager
def run_context(cfg: DictConfig) -> Iterator[Run]:
    """Lock the run's folder and yield the run. Any error but a preemption is written to failure.json and raised."""
    folder = run_dir(cfg)
    with _run_lock(folder, run_id(cfg)):
        run = Run(cfg)
        try:
            yield run
        except Preempted:
            raise
        except Exception as error:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise again if a worker has died
            cause = result.translate_error(error) or error
            if described := describe_error(cause):
                message, exit_status = described
                result.write_failure(folder, result.failure_status(cause), exit_status, message)
            elif world_size() == 1:
                result.write_failure(folder, "failed", 1, f"{type(error).__name__}: {error}")
            elif (folder / "failure.json").exists():
                raise SystemExit(1) from None  # this rank only misses another one, which has written the reason
            if cause is not error:
                raise cause from error
            raise


def run_entry_point(kind: RunKind, body: Callable[[DictConfig, Run, Preemption], None]) -> int:
    """Run `body` with the config of the command line's overrides, and return the exit status.

    The status is `REQUEUE` (75) if the run was preempted: the same command resumes it.
    """
    prepare_process()
    cfg = config_from_command_line(kind, sys.argv[1:])
    if cfg.logging.wandb:
        tracking.check_mode()
    configure_torch(cfg)
    with process_group(cfg.cluster.gpus_per_process, cfg.cluster.collective_timeout_minutes):
        try:
            with run_context(cfg) as run, Preemption(cfg.checkpointing.sync_every_steps) as preemption:
                body(cfg, run, preemption)
        except Preempted as stop:
            if is_main():
                print(stop, file=sys.stderr)
            return REQUEUE
    return 0


@contextmanager
def _run_lock(folder: Path, name: str) -> Iterator[None]:
    if not is_main():
        yield
        return
    with file_lock(folder / ".lock", f"run {name}"):
        yield
