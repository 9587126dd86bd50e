"""Doubts: what a reader should know of results before believing verdicts, beside what cells say themselves."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from reproduce.errors import few
from reproduce.harness import revision
from reproduce.harness.plan import cost_facts
from reproduce.harness.plan.cost import GPU_HARDWARE
from reproduce.harness.plan.model import Plan, Run
from reproduce.harness.plan.run_state import HASHES, valid_result
from reproduce.harness.spec import golden

CLOCK_TOLERANCE = timedelta(minutes=5)
"""Clocks of two machines may differ by so much."""
MAX_LETTERS = 500
NUM_NAMED = 3
"""Files or commits that a doubt names."""
WRONG_TIME = "a clock is wrong, or the file was edited"

Done = Sequence[tuple[Run, Mapping[str, Any]]]
"""Runs with their valid results."""


def doubts(plan: Plan, runs: Iterable[Run]) -> list[str]:
    """Return a sentence, without its full stop, for each doubt about the valid results of some of a plan's runs."""
    done = [(run, result) for run in runs if (result := valid_result(plan, run))]
    return [_plain(each) for each in (*_of_code(done), *_of_machines(done), *_of_images(done), *_of_clocks(done))]


def _plain(doubt: str) -> str:
    """Return a doubt without what an entry of a result could forge: lines, rows of tables, a terminal's commands."""
    printable = "".join(letter if letter.isprintable() else " " for letter in doubt)
    text = " ".join(printable.split()).replace("|", "/")
    return text if len(text) <= MAX_LETTERS else f"{text[:MAX_LETTERS]}..."


def of_recording(header: Mapping[str, Any]) -> list[str]:
    """Return the doubts about a recording of numbers, by what it says of itself."""
    return ["the numbers compared with were recorded from uncommitted code"] if header.get("dirty") else []


def of_tables() -> list[str]:
    """Return the doubts about what results are compared with: files that are in no commit."""
    changed = revision.uncommitted("tables")
    return [f"files in tables/ differ from the commit: {few(changed, NUM_NAMED)}"] if changed else []


def _of_code(done: Done) -> Iterator[str]:
    here = revision.commit()
    made_by = [_provenance(result) for _, result in done]
    commits = [str(each.get("git_commit")) for each in made_by]
    current = revision.run_code_fingerprint(here)
    others = [commit for commit in commits if here and revision.run_code_fingerprint(commit) != current]
    if others:
        theirs = few(sorted({commit[:12] for commit in others}), NUM_NAMED)
        yield f"{len(others)} of {len(done)} results were made by other code ({theirs}) than this commit's"
    if dirty := sum(bool(each.get("git_dirty")) for each in made_by):
        yield f"{dirty} of {len(done)} results were made by uncommitted code"
    networks = [each for run, each in done if run.kind != "measure"]
    if nameless := sum(not _provenance(each).get("checkpoint_sha256") for each in networks):
        yield f"{nameless} of {len(networks)} results do not say which checkpoint they are of"
    for run, result in done:
        if changed := _provenance(result).get("code_changed"):
            yield f"code changed while {run.label} ran: {few(changed, NUM_NAMED)}"


def _of_machines(done: Done) -> Iterator[str]:
    for run, result in done:
        arithmetic, hardware = (_provenance(result).get(key) for key in ("arithmetic", "hardware"))
        if arithmetic and golden.is_of_gpu(arithmetic) and hardware and not GPU_HARDWARE.fullmatch(hardware):
            yield f"{run.label} has a GPU's arithmetic, but ran on {hardware}"
    for name, of_seeds in _by_seeds(done).items():
        hardware = sorted({str(_provenance(each)["hardware"]) for each in of_seeds if "hardware" in _provenance(each)})
        if len(hardware) > 1:
            yield f"the seeds of {name} ran on different hardware: {'; '.join(hardware)}"


def _of_images(done: Done) -> Iterator[str]:
    for name, of_seeds in _by_seeds(done).items():
        for key in HASHES:
            if len({str(_provenance(each)[key]) for each in of_seeds if key in _provenance(each)}) > 1:
                yield f"the seeds of {name} read different images ({key})"
                break
    for run, result in done:
        if touched := _provenance(result).get("data_changed"):
            yield f"image files changed while {run.label} read them: {few(touched, NUM_NAMED)}"
    yield from dict.fromkeys(_of_test_sets(done))
    yield from dict.fromkeys(str(note) for _, result in done if (note := _provenance(result).get("fewer_neighbors")))
    if skipped := sum(int(result.get("counts", {}).get("num_skipped_images", 0)) for _, result in done):
        yield f"{skipped} images could not be read and were skipped, as requested"


def _of_test_sets(done: Done) -> Iterator[str]:
    """Yield which evaluations used another number of images than the official test set of their source has."""
    sizes = cost_facts.load().data
    for run, result in done:
        size = sizes.get(run.workload.dataset.get("source", ""))
        number = result.get("counts", {}).get("num_test_images")
        if size and number not in (None, size.num_val):
            source = run.workload.dataset["source"]
            yield f"{run.name} was measured on {number:,} images, but {source} has {size.num_val:,} to test on"


def _of_clocks(done: Done) -> Iterator[str]:
    latest = datetime.now(UTC) + CLOCK_TOLERANCE
    for run, result in done:
        started, finished = (_time(result.get(key)) for key in ("started", "finished"))
        if finished and finished > latest:
            yield f"{run.label} finished in the future, at {result['finished']}: {WRONG_TIME}"
        if started and finished and started > finished:
            yield f"{run.label} started after it finished: {WRONG_TIME}"


def _time(text: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _by_seeds(done: Done) -> dict[str, list[Mapping[str, Any]]]:
    """Return the results of runs that differ in nothing but their seeds, by their name for people."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for run, result in done:
        found.setdefault(run.label.rpartition(", seed ")[0], []).append(result)
    return {name: results for name, results in found.items() if len(results) > 1}


def _provenance(result: Mapping[str, Any]) -> Mapping[str, Any]:
    found = result.get("provenance", {})
    return found if isinstance(found, Mapping) else {}
