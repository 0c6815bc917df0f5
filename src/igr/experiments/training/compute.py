"""Where and how torch computes."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from igr.experiments.errors import ConfigError


@contextlib.contextmanager
def flushed_denormals() -> Iterator[None]:
    """Take numbers below the smallest normal one as zero, on the CPU, for this thread and those it starts.

    At low temperatures most relaxed samples have such coordinates, and so in time have Adam's moments; computing with
    them makes a step at temperature 0.01 almost three times as slow.
    """
    before = bool(torch.tensor(1e-40) * 0.5 == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@dataclass(frozen=True)
class Compute:
    """Where and how runs are computed.

    Compiled code changes results by rounding alone; another device draws other random numbers.

    Attributes:
        device: as torch names it.
        compiled: whether relaxed objectives go through ``torch.compile``; None: where that is worth it.
    """

    device: str = "cpu"
    compiled: bool | None = False

    def compiles(self, seconds: float) -> bool:
        """Whether to compile a training that is expected to take so long."""
        if self.compiled is not None:
            return self.compiled
        return seconds >= WORTH_COMPILING and self.device == "cpu" and not no_compiler()


WORTH_COMPILING = 600.0
"""Seconds of training from which on a step that is a tenth faster makes up for half a minute of compiling."""


@functools.cache
def no_compiler() -> str | None:
    """Why ``torch.compile`` does not work here; None where it does."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2))
    except Exception as error:  # whatever a missing or broken C++ compiler makes torch raise
        return str(error).strip().splitlines()[0]
    return None


CPU = Compute()


def keep_memory() -> None:
    """Have glibc's malloc keep what is freed, for the rest of this process; for commands and their workers.

    Blocks beyond 32 MB, such as the gradients of 50 runs, it gives back to the system at once, which then has to map
    and clear them anew in every step: a tenth of a step on one thread, a third on two.
    """
    trim_threshold, mmap_max = -1, -4  # glibc's numbers for these options
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def check_compute(compute: Compute) -> Compute:
    """The same, if torch can compute like this here."""
    name = compute.device
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(
            f"device: expected one that torch can use, such as cpu, got {name!r} ({first})"
        ) from None
    if compute.compiled and device.type == "cpu" and (reason := no_compiler()):
        raise ConfigError(
            f"compile: torch.compile does not work here, which needs a C++ compiler ({reason})"
        )
    return compute
