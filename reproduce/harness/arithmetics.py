"""Other arithmetic on this machine: other kernels sum in another order, as other machines do."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from reproduce.system import cpu_flags


@dataclass(frozen=True)
class Setting:
    """One arithmetic: environment variables that choose other kernels, and processes, which split sums."""

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    num_ranks: int = 1
    """Processes that train together, by gloo; only what is the same for any number of them is compared."""
    half_precision: bool = True
    """Whether bf16 and fp16 are rehearsed, too: most CPUs emulate them, slowly."""
    needs: str = ""
    """A flag of the processor without which the setting is impossible."""

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Set the environment of processes that start while this context lasts."""
        before = {name: os.environ.get(name) for name in self.environment}
        os.environ.update(self.environment)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _kernels(aten: str, onednn: str, mkl: str) -> dict[str, str]:
    """Return the environment that chooses the kernels of torch, of its convolutions and of its matrix products."""
    return {"ATEN_CPU_CAPABILITY": aten, "ONEDNN_MAX_CPU_ISA": onednn, "MKL_ENABLE_INSTRUCTIONS": mkl}


SETTINGS = (
    Setting("native"),
    Setting("2 processes", num_ranks=2),
    Setting("SSE4.1", _kernels("default", "SSE41", "SSE4_2"), half_precision=False),
    Setting("AVX2", _kernels("avx2", "AVX2", "AVX2"), needs="avx2"),
    Setting("AVX-512", _kernels("avx512", "AVX512_CORE", "AVX512"), needs="avx512f"),
)
"""What tolerances are measured under."""
HELD_OUT = (
    Setting("AVX", _kernels("default", "AVX", "AVX"), half_precision=False),
    Setting("plain kernels with AVX2 convolutions", _kernels("default", "AVX2", "AVX2"), needs="avx2"),
    Setting(
        "AVX-512 kernels with AVX2 convolutions and MKL's compatible products",
        _kernels("avx512", "AVX2", "AVX2") | {"MKL_CBWR": "COMPATIBLE"},
        needs="avx512f",
    ),
)
"""What recorded tolerances are tried under: no number may be outside."""
MIXED = (
    Setting(
        "AVX2 kernels with SSE4.1 convolutions and MKL's compatible products",
        _kernels("avx2", "SSE41", "AVX2") | {"MKL_CBWR": "COMPATIBLE"},
        needs="avx2",
    ),
)
"""More, where several numbers of one seed are wanted."""


def at_full_size() -> list[Setting]:
    """Return the settings that full-size networks are rehearsed under: few, because each takes two cores 20 minutes."""
    native, _, _, avx2, _ = SETTINGS
    _, plain, mixed = HELD_OUT
    return possible([native, avx2, mixed] if mixed.needs in cpu_flags() else [native, plain])


def possible(settings: Sequence[Setting]) -> list[Setting]:
    """Return the settings that this processor has."""
    flags = cpu_flags()
    return [setting for setting in settings if not setting.needs or setting.needs in flags]


def of_this_machine() -> list[Setting]:
    """Return this processor's own arithmetic, and all settings of one process in which it computes otherwise."""
    found = [each for each in possible((*SETTINGS, *HELD_OUT, *MIXED)) if each.num_ranks == 1]
    native = "AVX-512" if "AVX-512" in {each.name for each in found} else "AVX2"
    return [each for each in found if each.name != native]


def unlike_this_machine() -> list[Setting]:
    """Return all settings of one process in which this processor computes otherwise than by itself."""
    return [each for each in of_this_machine() if each.environment]
