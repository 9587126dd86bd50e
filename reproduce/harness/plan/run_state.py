"""What is left to do for each run of a plan, decided by the files that runs left behind."""

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reproduce import run_images
from reproduce.errors import UserError
from reproduce.files import read_json
from reproduce.harness.plan.model import CACHE, Plan, Run

if TYPE_CHECKING:
    from reproduce.config.schema import Dataset

CONTENT_HASH, SIZES_HASH = "data_content_sha256", "data_manifest_sha256"
HASHES = (CONTENT_HASH, SIZES_HASH)
"""Entries of a result's provenance that tell which images it is of; older results have the second only."""


class RunState(StrEnum):
    """What is left to do for a run. The values stand in plan.json; `label` is for people."""

    DONE = "done"
    TO_DO = "to_do"
    FAILED = "failed"
    """The last attempt failed; the run is tried again."""
    COLLAPSED = "collapsed"
    """The paper says that this training fails, and it did; or the run would measure such a training."""

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do."""
        return self in (RunState.DONE, RunState.COLLAPSED)

    @property
    def label(self) -> str:
        """The state in words."""
        return {
            RunState.DONE: "done",
            RunState.TO_DO: "to do",
            RunState.FAILED: "failed before",
            RunState.COLLAPSED: "collapsed, as printed",
        }[self]


def run_states(plan: Plan) -> dict[str, RunState]:
    """Return the state of every run by run_id, parents first."""
    return {run.run_id: run_state(plan, run) for run in plan.runs.values()}


def run_state(plan: Plan, run: Run) -> RunState:
    """Return what is left to do for a run. Plan, workflow, check, claims and report all decide by this function.

    A run is to do again if one of its parents is, or if a parent was trained again since: the result then belongs to
    another checkpoint than the present one. It also is if DATA has other images than the result is of, wherever those
    were. A result stays valid if only the checkpoint's file or the images are gone.
    """
    parents = [run_state(plan, parent) for parent in _parents(plan, run)]
    if RunState.COLLAPSED in parents or _collapsed_as_printed(plan, run):
        return RunState.COLLAPSED
    if run.read_result() is None:
        return RunState.FAILED if run.failure.exists() else RunState.TO_DO
    made_again = any(parent != RunState.DONE for parent in parents) or _of_another_checkpoint(run)
    made_again = made_again or bool(other_images(plan, run))
    return RunState.TO_DO if made_again else RunState.DONE


def valid_result(plan: Plan, run: Run) -> dict[str, Any] | None:
    """Return a run's result, or None if there is none or the run is to do again."""
    return run.read_result() if run_state(plan, run) == RunState.DONE else None


def missing_reason(plan: Plan, run: Run) -> str:
    """Return the label of a run without a valid result and, if it has an outdated one, why that does not count."""
    if run.read_result() is None or run_state(plan, run) == RunState.DONE:
        return run.label
    missing = [parent.label for parent in _parents(plan, run) if parent.read_result() is None]
    if splits := other_images(plan, run):
        return (
            f"{run.label} (its result is of other images than {', '.join(splits)} in {plan.data_root}; make "
            "reproduce-... (python -m reproduce run) evaluates these)"
        )
    again = f"make reproduce-... (python -m reproduce run) makes {'both' if missing else 'it'} again"
    if not missing:
        return f"{run.label} (its result belongs to a checkpoint that was trained again since; {again})"
    return (
        f"{run.label} (its result belongs to a checkpoint of {missing[0]}, which has no result here; {again}, or "
        "copy that result.json, too: the checkpoint is not needed)"
    )


def sync_mtimes(plan: Plan) -> None:
    """Align mtimes with `run_states`, because Snakemake reruns anything older than its parent.

    A valid result that is older than a parent's gets the parent's mtime. A result that is outdated although its parents
    are done is deleted, as Snakemake itself would do; one of other images is set aside, with its checkpoint.
    """
    for run in plan.runs.values():
        parents = _parents(plan, run)
        if not run.result.exists() or any(run_state(plan, parent) != RunState.DONE for parent in parents):
            continue
        if run_state(plan, run) == RunState.TO_DO:
            if other_images(plan, run):
                run_images.set_aside(Path(run.folder))
            else:
                run.result.unlink()
        else:
            newest = max([run.result, *(parent.result for parent in parents)], key=lambda path: path.stat().st_mtime)
            os.utime(run.result, ns=(newest.stat().st_atime_ns, newest.stat().st_mtime_ns))


def other_images(plan: Plan, run: Run) -> list[str]:
    """Return the splits in DATA whose content is not that of a run's result (`imagenet/train`); [] if none is known.

    Unknown are images that are not there, and those of an older result, unless their names or sizes differ. Images that
    the harness generates are what the generator's version says; a result of other images, which DATA named, is known by
    its folder.
    """
    result = run.read_result()
    if result is None or not run.workload.dataset or not plan.data_root:
        return []
    provenance = result.get("provenance", {})
    generates = bool(plan.generated_data_dir)
    if generates and CACHE.name in Path(str(provenance.get("data_root") or CACHE)).parts:
        return []
    for key in HASHES:
        if recorded := provenance.get(key):
            found = {name: _hash_in_data(plan, run, name, key) for name in recorded}
            unknown = () if generates else (None,)  # generated ones are there as soon as a run needs them
            return [name for name, known in recorded.items() if found[name] not in (known, *unknown)]
    return []


def _hash_in_data(plan: Plan, run: Run, name: str, kind: str) -> str | None:
    """Return the hash of a split in DATA, or None if it is not there. One command looks each up once.

    Raises `RetryableError` if it can't be read: then nobody can tell which images these are.
    """
    from reproduce.config.schema import Dataset  # which imports Hydra

    dataset = Dataset(**run.workload.dataset)
    split = name.removeprefix(f"{dataset.name}/")  # which may be the name of a folder in a folder
    key = (repr(dataset), split, kind)
    if key not in plan.content_hashes:
        try:
            plan.content_hashes[key] = _hash(Path(plan.data_root), dataset, split, kind, Path(run.folder))
        except (UserError, OSError):
            plan.content_hashes[key] = None
    return plan.content_hashes[key]


def _hash(data: Path, dataset: "Dataset", split: str, kind: str, run_folder: Path) -> str | None:
    from reproduce.data.datasets.content import content_cache, split_content_sha256
    from reproduce.data.datasets.image_folder import read_image_list
    from reproduce.data.datasets.manifest import split_manifest

    if kind == CONTENT_HASH:
        return split_content_sha256(data, dataset, split, content_cache(run_folder))
    if dataset.layout in ("voc", "coco"):  # older results leave out what a detector can't use
        return None
    images = read_image_list(data / dataset.root, dataset, split)
    return str(split_manifest(data, dataset, split, images)["sha256"])


def _parents(plan: Plan, run: Run) -> list[Run]:
    return [plan.runs[name] for name in run.parents if name in plan.runs]


def _of_another_checkpoint(run: Run) -> bool:
    """Return whether a parent was trained again after a run measured it, as far as the results show.

    Results quote the checkpoint's SHA-256. Older results of pretrainings do not; then the later `finished` decides.
    Files' mtimes say nothing: a copy does not keep them.
    """
    own = read_json(run.result)
    for name in run.parents or own.get("parents", []):
        path = Path(run.folder).with_name(name) / "result.json"
        parent = read_json(path) if path.exists() else {}
        present, measured = (each.get("provenance", {}).get("checkpoint_sha256") for each in (parent, own))
        trained_at, measured_at = (str(each.get("finished") or "") for each in (parent, own))
        if present and measured:
            if present != measured:
                return True
        elif trained_at and measured_at and trained_at > measured_at:
            return True
    return False


def _collapsed_as_printed(plan: Plan, run: Run) -> bool:
    if run.result.exists() or not run.failure.exists() or not plan.expected_to_fail(run):
        return False
    failure = run.read_failure()
    return failure is not None and failure["status"] == "collapsed"
