"""The identity of a run: the part of its config that decides its numbers, the hash of that part, and the run's name."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

UNHASHED_SECTIONS = {
    "paths": "where files are on this machine; the result records the hash of the data's manifest",
    "cluster": "how a run uses machines; only the order of float sums depends on it (docs/numerics.md)",
    "logging": "what a run reports while it runs",
    "checkpointing": "when a run saves; a resumed run computes the same numbers as an uninterrupted one",
    "metrics": "the names of what a run reports",
    "data": "the whole catalog; the one dataset that the run reads is the section `dataset`",
}
"""Sections that are left out of a run's identity, and why they can't change its numbers."""
RUN_ID = re.compile(r"(?P<name>.+)-s(?P<seed>[0-9]+)-[0-9a-f]{10}")
"""The form of what `run_id` returns."""


def identity(cfg: DictConfig) -> dict[str, Any]:
    """Return the part of `cfg` that decides what a run computes, as plain data.

    A checkpoint file counts by its content, not by its path.
    """
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    hashed: dict[str, Any] = _without_nulls({str(key): plain[key] for key in plain if key not in UNHASHED_SECTIONS})
    checkpoint = Path(str(hashed.get("checkpoint", "")))
    if checkpoint.is_file():
        with checkpoint.open("rb") as file:
            hashed["checkpoint"] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashed


def _without_nulls(value: Any) -> Any:
    """Drop keys that are null, so that an option added later leaves the names of earlier runs alone."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def config_hash(cfg: DictConfig) -> str:
    """Return the SHA-256 of a config's identity, in hex."""
    text = json.dumps(identity(cfg), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def run_id(cfg: DictConfig) -> str:
    """Return the run's name: config name, seed and the first ten digits of the hash. Equal configs are one run."""
    return f"{cfg.name}-s{cfg.seed}-{config_hash(cfg)[:10]}"


def run_dir(cfg: DictConfig) -> Path:
    """Return the folder that holds the run's files."""
    return Path(cfg.paths.results) / cfg.scale / run_id(cfg)
