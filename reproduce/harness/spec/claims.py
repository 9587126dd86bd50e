"""The paper's conclusions as data (`tables/claims.yaml`): which of our numbers each compares, and how."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from reproduce.errors import UserError
from reproduce.harness.spec import tables
from reproduce.harness.spec.evaluations import check_metrics
from reproduce.typed_yaml import load_yaml

TARGET = "claims"
"""The name that requests all claims, like the name of a table: `plan claims`."""


@dataclass(frozen=True)
class Measurement:
    """One of our numbers: an experiment under an evaluation. Without `eval` it is read from the training curve."""

    pretrain: str
    eval: str = ""
    metric: str = ""

    @property
    def metric_key(self) -> str:
        """The key of the cell in a table that shows the same number (`Cell.metric_key`)."""
        return f"{self.pretrain}/{self.eval}/{self.metric}"


@dataclass(frozen=True)
class Comparison:
    """One experiment's number is higher than another's; `printed` is the difference in the paper, in points."""

    higher: str
    lower: str
    printed: float
    eval: str
    metric: str
    lower_eval: str = ""
    """The evaluation of `lower`, if the paper compares numbers of two protocols."""

    def measurements(self) -> Iterator[Measurement]:
        """Return the measurement of each experiment."""
        evaluations = (self.eval, self.lower_eval or self.eval)
        experiments = zip((self.higher, self.lower), evaluations, strict=True)
        return (Measurement(experiment, evaluation, self.metric) for experiment, evaluation in experiments)


@dataclass(frozen=True)
class Spread:
    """The numbers of several experiments differ by at most `max_points`."""

    experiments: list[str]
    eval: str
    metric: str
    max_points: float

    def measurements(self) -> Iterator[Measurement]:
        """Return the measurement of each experiment."""
        return (Measurement(experiment, self.eval, self.metric) for experiment in self.experiments)


@dataclass(frozen=True)
class Convergence:
    """One training converges, another one collapses."""

    converges: str
    fails: str
    eval: str
    metric: str

    def measurements(self) -> Iterator[Measurement]:
        """Return the measurement of each experiment."""
        return (Measurement(experiment, self.eval, self.metric) for experiment in (self.converges, self.fails))


@dataclass(frozen=True)
class FasterConvergence:
    """The loss of one training falls faster than that of another."""

    faster: str
    slower: str

    def measurements(self) -> Iterator[Measurement]:
        """Return both training curves."""
        return (Measurement(experiment) for experiment in (self.faster, self.slower))


@dataclass(frozen=True)
class Claim:
    """One conclusion: exactly one of `compare` (all must hold), `spread`, `convergence`, `faster_convergence`."""

    claim: str
    statement: str
    section: str
    compare: list[Comparison] = field(default_factory=list)
    spread: Spread | None = None
    convergence: Convergence | None = None
    faster_convergence: FasterConvergence | None = None

    def parts(self) -> list[Comparison | Spread | Convergence | FasterConvergence]:
        """Return the comparisons that must all hold."""
        return [*self.compare, *(part for part in (self.spread, self.convergence, self.faster_convergence) if part)]

    def measurements(self) -> list[Measurement]:
        """Return our numbers that the claim compares, each once."""
        return list(dict.fromkeys(each for part in self.parts() for each in part.measurements()))


@dataclass(frozen=True)
class _File:
    claims: list[Claim]


def load() -> list[Claim]:
    """Load all claims. Raises `UserError` for an error in their file."""
    path = tables.TABLES_DIR / "claims.yaml"
    found: list[Claim] = load_yaml(_File, path).claims
    for claim in found:
        kinds = [bool(claim.compare), bool(claim.spread), bool(claim.convergence), bool(claim.faster_convergence)]
        if sum(kinds) != 1:
            raise UserError(
                f"{path}: {claim.claim} needs exactly one of compare, spread, convergence, faster_convergence"
            )
        for each in claim.measurements():
            if each.eval:
                check_metrics("eval", each.eval, [each.metric], f"{path}: {claim.claim}")
    return found


def using(keys: Iterable[str]) -> list[Claim]:
    """Return the claims that compare any of these numbers."""
    wanted = set(keys)
    return [claim for claim in load() if wanted & {each.metric_key for each in claim.measurements()}]
