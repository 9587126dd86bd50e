"""What evaluations and measurements report, as their configs list it: reproduce/conf/eval and conf/measurement."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Literal

import yaml

from reproduce.errors import UserError, did_you_mean
from reproduce.system import REPO_ROOT

CONF_DIR = REPO_ROOT / "reproduce/conf"
Group = Literal["eval", "measurement"]


def check_metrics(group: Group, name: str, wanted: Iterable[str], where: str) -> None:
    """Raise `UserError`, which begins with `where`, if there is no such evaluation, or if it reports no such metric."""
    path = CONF_DIR / group / f"{name}.yaml"
    if not path.is_file():
        what = {"eval": "evaluation", "measurement": "measurement"}[group]
        valid = (each.stem for each in path.parent.glob("*.yaml"))
        raise UserError(f"{where}: there is no {what} {name!r}: {did_you_mean(name, valid)}")
    reported = _metrics(path)
    for metric in wanted:
        if metric not in reported:
            raise UserError(f"{where}: {name} reports no metric {metric!r}: {did_you_mean(metric, reported)}")


@cache
def _metrics(path: Path) -> tuple[str, ...]:
    return tuple(yaml.load(path.read_text(), Loader=yaml.CSafeLoader).get("metrics", ()))
