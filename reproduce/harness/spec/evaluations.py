"""What evaluations and measurements report, as their configs list it: reproduce/conf/eval and conf/measurement."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Literal

import yaml

from reproduce.errors import UserError, did_you_mean
from reproduce.system import CONF_DIR

Group = Literal["eval", "measurement"]


def check_metrics(group: Group, name: str, wanted: Iterable[str], where: str) -> None:
    """Raise `UserError`, which begins with `where`, if there is no such evaluation, or if it reports no such metric."""
    valid = {path.stem: path for path in (CONF_DIR / group).glob("*.yaml")}
    if name not in valid:
        what = {"eval": "evaluation", "measurement": "measurement"}[group]
        raise UserError(f"{where}: there is no {what} {name!r}: {did_you_mean(name, valid)}")
    reported = _metrics(valid[name])
    for metric in wanted:
        if metric not in reported:
            raise UserError(f"{where}: {name} reports no metric {metric!r}: {did_you_mean(metric, reported)}")


@cache
def _metrics(path: Path) -> tuple[str, ...]:
    return tuple(yaml.load(path.read_text(), Loader=yaml.CSafeLoader).get("metrics", ()))
