"""The configs behind a plan's runs, each composed once and remembered: Hydra takes a quarter of a second for one."""

import dataclasses
import hashlib
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reproduce.errors import UserError
from reproduce.files import write_json
from reproduce.harness.plan import workload
from reproduce.harness.plan.model import CACHE, Kind, Request, Run
from reproduce.harness.plan.workload import Work
from reproduce.system import REPO_ROOT

if TYPE_CHECKING:
    from omegaconf import DictConfig  # which the harness imports only where a plan is new

WHOLE_MACHINE = 100_000
"""Cores of a run that measures time: nothing may run beside it."""


@dataclass
class Composer:
    """Composes configs, each distinct one once; answers are kept in `.cache` as long as no config file changes."""

    request: Request
    memory: dict[str, Any] = field(default_factory=dict)
    composed: dict[str, "DictConfig"] = field(default_factory=dict)
    """Configs as resolved in this process; their plain keys are those of the last run that was asked for."""
    new: bool = False

    def __post_init__(self) -> None:
        self.file = CACHE / "configs.json"
        self.fingerprint = _fingerprint()
        try:
            kept = json.loads(self.file.read_text())
            self.memory = kept["configs"] if kept["fingerprint"] == self.fingerprint else {}
        except (OSError, ValueError, KeyError, TypeError):
            self.memory = {}

    def run(self, kind: Kind, overrides: list[str], around: list[str], parent: Run | None = None) -> Run:
        """The run that a list of overrides comes to. `around` says where and for whom: no part of what it is."""
        overrides = [*self.request.where(kind), *overrides]
        known = self._remember(kind, overrides, lambda: self._compose(kind, overrides))
        parents = [parent.run_id] if parent else []
        of = parent.name if parent else ""
        does = Work(**known["work"])
        return Run(kind=kind, overrides=[*overrides, *around], parents=parents, of=of, **known | {"work": does})

    def catalogue(self, overrides: list[str]) -> dict[str, str]:
        """Name of the data catalogue, and the source of its pictures."""
        return dict(self._remember("catalogue", overrides, lambda: _catalogue(overrides)))

    @property
    def cluster(self) -> dict[str, Any]:
        """The section of the config that says where runs go."""
        where = [f"scale={self.request.scale}", *self.request.where("pretrain")]
        return dict(self._remember("cluster", where, lambda: _cluster(where)))

    def _compose(self, kind: Kind, overrides: list[str]) -> dict[str, Any]:
        """What a run is. Composing takes a quarter of a second: runs that differ in plain keys share one config."""
        from reproduce.config.compose import compose

        rest, plain = _plain_keys(overrides)
        shared = [*rest, *(f"{key}=0" for key in plain)]
        key = _key(kind, shared)
        if key not in self.composed:
            self.composed[key] = compose(kind, shared)
        self.composed[key].update(plain)
        return _summary(kind, self.composed[key])

    def save(self) -> None:
        """Keep the answers for the next command."""
        if self.new:
            write_json(self.file, {"fingerprint": self.fingerprint, "configs": self.memory})

    def _remember(self, what: str, overrides: list[str], compose: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        key = _key(what, overrides)
        if key not in self.memory:
            self.memory[key] = compose()
            self.new = True
        known: dict[str, Any] = self.memory[key]
        return known


def _key(what: str, overrides: list[str]) -> str:
    """Names an answer: by the words of the request, and by what a catalogue of one's own says."""
    own = [Path(item.partition("=")[2]) for item in overrides if item.startswith("data=") and item.endswith("ml")]
    files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in own if path.is_file()]
    return " ".join([what, *overrides]) + "".join(files)


PLAIN = {"seed": re.compile(r"(\d+)"), "checkpoint": re.compile(r"(\w+-s\d+-[0-9a-f]{10})|'(released:\w+)'")}
"""Keys that no other is made of, and their values that need no parser: whole numbers, run_ids, public weights."""


def _plain_keys(overrides: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Overrides without those that set a plain key to a plain value; and the last value of each of these keys."""
    rest, plain = overrides, {}
    for key, pattern in PLAIN.items():
        values = [item.partition("=")[2] for item in rest if item.startswith(f"{key}=")]
        found = [match[match.lastindex or 0] for value in values if (match := pattern.fullmatch(value))]
        if values and len(found) == len(values):
            rest = [item for item in rest if not item.startswith(f"{key}=")]
            plain[key] = int(found[-1]) if key == "seed" else found[-1]
    return rest, plain


def _summary(kind: Kind, cfg: "DictConfig") -> dict[str, Any]:
    from reproduce.config.identity import run_dir, run_id

    return {
        "run_id": run_id(cfg),
        "name": cfg.name,
        "seed": cfg.seed,
        "folder": str(run_dir(cfg)),
        "cores": WHOLE_MACHINE if kind == "measure" else cfg.cluster.num_threads * cfg.cluster.num_processes,
        "num_processes": cfg.cluster.num_processes,
        "num_nodes": _num_nodes(cfg.cluster),
        "catalogue": cfg.data.name,
        "work": dataclasses.asdict(workload.of(cfg)),
    }


def _num_nodes(cluster: Any) -> int:
    """How many machines a run takes. Raises `UserError` where they would not be evenly filled."""
    nodes = math.ceil(cluster.num_processes / (cluster.processes_per_node or cluster.num_processes))
    if cluster.num_processes % nodes:
        raise UserError(
            f"cluster.num_processes={cluster.num_processes} can't be spread evenly over machines of "
            f"cluster.processes_per_node={cluster.processes_per_node}: make it a multiple of that"
        )
    if nodes > 1 and cluster.executor == "local":
        raise UserError(
            f"{nodes} machines of cluster.processes_per_node={cluster.processes_per_node} are asked for, and there is "
            "one: take CLUSTER=slurm or kubernetes (python -m reproduce: --cluster)"
        )
    return nodes


def _cluster(overrides: list[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf

    from reproduce.config.compose import compose

    section: Any = OmegaConf.to_container(compose("pretrain", overrides).cluster)
    return dict(section)


def _catalogue(overrides: list[str]) -> dict[str, str]:
    from reproduce.config.compose import compose

    data = compose("pretrain", overrides).data
    return {"name": data.name, "source": data.imagenet.source}


def _fingerprint() -> str:
    """Hash of all that a composed config, and what is kept of it, depends on."""
    package = REPO_ROOT / "reproduce"
    digest = hashlib.sha256(" ".join([sys.version, version("hydra-core"), version("omegaconf")]).encode())
    for kept in (Path(__file__), Path(workload.__file__)):
        digest.update(kept.read_bytes())
    for path in sorted([*(package / "config").glob("*.py"), *(package / "conf").rglob("*.yaml")]):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()
