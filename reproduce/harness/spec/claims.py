"""The paper's conclusions as data (`tables/claims.yaml`): which numbers of ours each compares, and which way."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from reproduce.errors import UserError
from reproduce.harness.spec import tables

REQUEST = "claims"
"""What stands for all claims where a table's name could stand: `plan claims`."""


@dataclass(frozen=True)
class Need:
    """A number of ours: an experiment under an evaluation. Without one it is read from the training's curve."""

    pretrain: str
    eval: str = ""
    metric: str = ""

    @property
    def key(self) -> str:
        """As that of a table's cell."""
        return f"{self.pretrain}/{self.eval}/{self.metric}"


@dataclass(frozen=True)
class Comparison:
    """One experiment's number is higher than another's; `printed` is the paper's difference, in points."""

    higher: str
    lower: str
    printed: float
    eval: str
    metric: str

    def needs(self) -> Iterator[Need]:
        """One number for each."""
        return (Need(experiment, self.eval, self.metric) for experiment in (self.higher, self.lower))


@dataclass(frozen=True)
class Spread:
    """Numbers that differ by at most so many points."""

    of: list[str]
    eval: str
    metric: str
    at_most: float

    def needs(self) -> Iterator[Need]:
        """One number for each."""
        return (Need(experiment, self.eval, self.metric) for experiment in self.of)


@dataclass(frozen=True)
class Convergence:
    """One training converges, another collapses."""

    converges: str
    fails: str
    eval: str
    metric: str

    def needs(self) -> Iterator[Need]:
        """Both, as in the table."""
        return (Need(experiment, self.eval, self.metric) for experiment in (self.converges, self.fails))


@dataclass(frozen=True)
class Sooner:
    """The loss of one training falls sooner than that of another."""

    first: str
    then: str

    def needs(self) -> Iterator[Need]:
        """Both curves."""
        return (Need(experiment) for experiment in (self.first, self.then))


@dataclass(frozen=True)
class Claim:
    """One conclusion: exactly one of `compare` (all must hold), `spread`, `convergence` and `sooner`."""

    claim: str
    says: str
    section: str
    compare: list[Comparison] = field(default_factory=list)
    spread: Spread | None = None
    convergence: Convergence | None = None
    sooner: Sooner | None = None

    def parts(self) -> list[Comparison | Spread | Convergence | Sooner]:
        """What must hold."""
        return [*self.compare, *(part for part in (self.spread, self.convergence, self.sooner) if part)]

    def needs(self) -> list[Need]:
        """The numbers of ours that the claim compares, each once."""
        return list(dict.fromkeys(need for part in self.parts() for need in part.needs()))


@dataclass(frozen=True)
class _File:
    claims: list[Claim]


def load() -> list[Claim]:
    """Read all claims. Raises `UserError` for what is wrong in their file."""
    path = tables.TABLES / "claims.yaml"
    found: list[Claim] = tables.read(_File, path).claims
    for claim in found:
        kinds = [bool(claim.compare), bool(claim.spread), bool(claim.convergence), bool(claim.sooner)]
        if sum(kinds) != 1:
            raise UserError(f"{path}: {claim.claim} needs exactly one of compare, spread, convergence, sooner")
    return found


def touching(keys: Iterable[str]) -> list[Claim]:
    """The claims that need any of these numbers."""
    wanted = set(keys)
    return [claim for claim in load() if wanted & {need.key for need in claim.needs()}]
