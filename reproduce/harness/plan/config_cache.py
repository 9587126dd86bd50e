"""A cache of what a plan needs from composed configs, because Hydra takes a tenth of a second to compose one.

Hydra itself is imported only to compose a config: if the cache has all of them, a plan does without it.
"""

import copy
import dataclasses
import hashlib
import json
import math
import multiprocessing
import re
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from models.zoo import entries
from reproduce.config import RunKind
from reproduce.config.identity import run_dir
from reproduce.config.quoting import hydra_quote
from reproduce.errors import UserError
from reproduce.files import write_atomic
from reproduce.harness.plan import workload
from reproduce.harness.plan.model import CACHE, Request, Run
from reproduce.harness.plan.workload import Workload
from reproduce.system import CONF_DIR, REPO_ROOT, available_cores

FILE_NAME = "configs.tsv"
WHOLE_MACHINE = 100_000
"""The cores of a run that measures time, so that nothing runs beside it."""
FEW = 4
"""Configs that one process composes sooner than several would."""
STAND_IN = Run(
    run_id="stand_in-s0-0000000000",
    kind="pretrain",
    name="",
    seed=0,
    folder="",
    overrides=[],
    parents=[],
    cores=1,
    num_processes=1,
    data_config="",
    workload=Workload("", 0, 0, "", 0, {}),
)
"""Stands for a run whose config is not composed yet. Its name is one of `PLAIN_KEYS`, as all names of runs are."""


@dataclass
class ConfigCache:
    """Composes each distinct config once, and keeps its summary in `.cache` as long as no config file changes."""

    request: Request
    summaries: dict[str, str] = field(default_factory=dict)
    """A summary as JSON for each config. A plan parses those that it needs, out of hundreds."""
    composed: dict[str, DictConfig] = field(default_factory=dict)
    """Configs composed in this process; their `PLAIN_KEYS` are those of the last requested run."""
    modified: bool = False
    missing: dict[str, tuple[RunKind, list[str]]] | None = None
    """Configs that `compose_ahead` has found to be missing; None unless it is looking for them."""

    def __post_init__(self) -> None:
        self.file = CACHE / FILE_NAME
        self.fingerprint = _fingerprint()
        try:
            fingerprint, summaries = read_summaries(self.file)
            if fingerprint == self.fingerprint:
                self.summaries = summaries
        except FileNotFoundError:
            return
        except (OSError, ValueError):
            self.modified = True
            print(f"warning: {self.file} is damaged; its configs are composed again", file=sys.stderr)

    def run(self, kind: RunKind, overrides: list[str], run_overrides: list[str], parent: Run | None = None) -> Run:
        """Return the run of a list of overrides. `run_overrides` are passed to it too, but are no part of its name."""
        overrides = [*self.request.cluster_overrides(kind), *overrides]
        if self.missing is not None and _key(kind, overrides) not in self.summaries:
            shared, _ = _shared(overrides)
            self.missing[_key(kind, shared)] = (kind, shared)
            return STAND_IN
        summary = self._cached(kind, overrides, lambda: self._compose(kind, overrides))
        return Run(
            kind=kind,
            overrides=[*overrides, *run_overrides],
            parents=[parent.run_id] if parent else [],
            parent_name=parent.name if parent else "",
            **summary | {"workload": Workload(**summary["workload"])},
        )

    def compose_ahead(self, ask: Callable[[], object]) -> None:
        """Compose on all cores what `ask` will ask for; it is called once before, with a stand-in for each such run."""
        self.missing = {}
        try:
            ask()
        finally:
            wanted = {key: asked for key, asked in self.missing.items() if key not in self.composed}
            self.missing = None
        num_processes = min(available_cores(), len(wanted))
        if len(wanted) <= FEW or num_processes == 1:
            return
        from reproduce.config.compose import compose  # once, before the processes are forked

        context = multiprocessing.get_context("fork")
        kinds, overrides = zip(*wanted.values(), strict=True)
        try:
            with ProcessPoolExecutor(num_processes, context, signal.signal, (signal.SIGINT, signal.SIG_DFL)) as pool:
                self.composed.update(zip(wanted, pool.map(compose, kinds, overrides), strict=True))
        except BrokenProcessPool:
            return  # then each is composed when it is needed

    def data(self, overrides: list[str]) -> dict[str, str]:
        """Return the `name` of the data config, and the `source` of its ImageNet."""
        return dict(self._cached("data", overrides, lambda: _data(overrides)))

    @property
    def cluster(self) -> dict[str, Any]:
        """The `cluster` section of the config."""
        where = [f"scale={self.request.scale}", *self.request.cluster_overrides("pretrain")]
        return dict(self._cached("cluster", where, lambda: _cluster(where)))

    def _compose(self, kind: RunKind, overrides: list[str]) -> dict[str, Any]:
        """Return the summary of a run. Runs that differ only in `PLAIN_KEYS` share one composed config."""
        from reproduce.config.compose import compose
        from reproduce.config.validate import check_values

        shared, own = _shared(overrides)
        key = _key(kind, shared)
        if key not in self.composed:
            self.composed[key] = compose(kind, shared)
        cfg = self.composed[key]
        if NORMALIZE in own:  # the next run of this config may be one that keeps the evaluation's own
            cfg = copy.deepcopy(cfg)
            cfg[NORMALIZE].update(own.pop(NORMALIZE))
        cfg.update(own)
        check_values(cfg)
        return _summary(kind, cfg)

    def save(self) -> None:
        """Keep the summaries for the next command."""
        if self.modified:
            write_summaries(self.file, self.fingerprint, self.summaries)

    def _cached(self, what: str, overrides: list[str], compose: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        key = _key(what, overrides)
        if key not in self.summaries:
            self.summaries[key] = json.dumps(compose())
            self.modified = True
        summary: dict[str, Any] = json.loads(self.summaries[key])
        return summary


def _key(what: str, overrides: list[str]) -> str:
    """Return the key of a summary: the overrides, and the content of a data config given as a file."""
    own = [Path(item.partition("=")[2]) for item in overrides if item.startswith("data=") and item.endswith("ml")]
    files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in own if path.is_file()]
    return " ".join([what, *overrides]) + "".join(files)


PLAIN_KEYS = {"seed": re.compile(r"(\d+)"), "checkpoint": re.compile(r"(\w+-s\d+-[0-9a-f]{10})|'(released:\w+)'")}
"""Keys that no other key depends on, and the values of them that need no parser: integers, run_ids, public weights."""

NORMALIZE = "normalize"
"""The section that evaluations of public weights choose, and otherwise share with those of our own."""


def is_fixed_checkpoint(checkpoint: str) -> bool:
    """Return whether a checkpoint's name says what it is: of a file, the content does, which may come or change."""
    return bool(PLAIN_KEYS["checkpoint"].fullmatch(hydra_quote(checkpoint)))


def _shared(overrides: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the overrides of the config that a run shares with others, and the keys that are its own.

    These are its `PLAIN_KEYS`, and `NORMALIZE`, a section that no key outside it depends on.
    """
    if any(item.startswith(("+", "~")) for item in overrides):  # they may set, add or delete any key
        return overrides, {}
    rest, plain = _plain_keys(overrides)
    shared = [item for item in rest if not item.startswith(f"{NORMALIZE}=")]
    choices = {item.partition("=")[2] for item in rest if item not in shared}
    file = CONF_DIR / NORMALIZE / f"{next(iter(choices), '')}.yaml"
    if len(choices) != 1 or not file.is_file() or any(item.startswith(f"{NORMALIZE}.") for item in rest):
        shared, own = rest, plain
    else:
        own = {**plain, NORMALIZE: yaml.load(file.read_text(), Loader=yaml.CSafeLoader)}
    return [*shared, *(f"{key}=0" for key in plain)], own


def _plain_keys(overrides: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the overrides that do not set `PLAIN_KEYS` to plain values, and the last value of each of the others."""
    rest, plain = overrides, {}
    for key, pattern in PLAIN_KEYS.items():
        values = [item.partition("=")[2] for item in rest if item.startswith(f"{key}=")]
        found = [match[match.lastindex or 0] for value in values if (match := pattern.fullmatch(value))]
        if values and len(found) == len(values):
            rest = [item for item in rest if not item.startswith(f"{key}=")]
            plain[key] = int(found[-1]) if key == "seed" else found[-1]
    return rest, plain


def _summary(kind: RunKind, cfg: DictConfig) -> dict[str, Any]:
    folder = run_dir(cfg)  # named after the run, whose hash takes a while
    return {
        "run_id": folder.name,
        "name": cfg.name,
        "seed": cfg.seed,
        "folder": str(folder),
        "cores": WHOLE_MACHINE if kind == "measure" else cfg.cluster.num_threads * cfg.cluster.num_processes,
        "num_processes": cfg.cluster.num_processes,
        "num_nodes": _num_nodes(cfg.cluster, "detector_processes" if kind == "evaluate" else "num_processes"),
        "data_config": cfg.data.name,
        "workload": dataclasses.asdict(workload.workload_of(cfg)),
    }


def _num_nodes(cluster: Any, option: str) -> int:
    """Return the number of machines of a run. Raises `UserError` if the processes cannot be spread evenly.

    `option` is the cluster option that sets the number of processes.
    """
    nodes = math.ceil(cluster.num_processes / (cluster.processes_per_node or cluster.num_processes))
    if cluster.num_processes % nodes:
        raise UserError(
            f"cluster.{option}={cluster.num_processes} can't be spread evenly over machines of "
            f"cluster.processes_per_node={cluster.processes_per_node}: make it a multiple of that"
        )
    if nodes > 1 and cluster.executor == "local":
        raise UserError(
            f"cluster.processes_per_node={cluster.processes_per_node} asks for {nodes} machines, and CLUSTER=local has "
            "one: try CLUSTER=slurm or kubernetes (python -m reproduce: --cluster)"
        )
    return nodes


def _cluster(overrides: list[str]) -> dict[str, Any]:
    from reproduce.config.compose import compose

    section: Any = OmegaConf.to_container(compose("pretrain", overrides).cluster)
    return dict(section)


def _data(overrides: list[str]) -> dict[str, str]:
    from reproduce.config.compose import compose

    cfg = compose("pretrain", overrides)
    return {"name": cfg.data.name, "source": cfg.dataset.source}


def read_summaries(file: Path) -> tuple[str, dict[str, str]]:
    """Return the fingerprint and the summaries that `write_summaries` wrote. Raises `ValueError` if any bit is wrong.

    The file has a line for each config, its key and its summary; the first line is for them all.
    """
    first, _, lines = file.read_text().partition("\n")
    fingerprint, _, digest = first.partition("\t")
    if digest != hashlib.sha256(lines.encode()).hexdigest():
        raise ValueError(f"{file} is damaged")
    entries = (line.split("\t") for line in lines.splitlines())
    return fingerprint, {json.loads(key): summary for key, summary in entries}


def write_summaries(file: Path, fingerprint: str, summaries: dict[str, str]) -> None:
    """Write summaries with a fingerprint of what they depend on, and a hash by which damage is noticed."""
    lines = "".join(f"{json.dumps(key)}\t{summary}\n" for key, summary in summaries.items())
    write_atomic(file, f"{fingerprint}\t{hashlib.sha256(lines.encode()).hexdigest()}\n{lines}")


def _fingerprint() -> str:
    """Return a hash of everything that the summaries depend on."""
    package = REPO_ROOT / "reproduce"
    digest = hashlib.sha256(" ".join([sys.version, version("hydra-core"), version("omegaconf")]).encode())
    for path in (Path(__file__), Path(workload.__file__), entries.ZOO):
        digest.update(path.read_bytes())
    for path in sorted([*(package / "config").glob("*.py"), *(package / "conf").rglob("*.yaml")]):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()
