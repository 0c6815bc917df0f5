"""What every test shares: one thread, a fixed seed, and the folder of real data where there is one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch.distributions import Distribution

# Tests run side by side, one process per core.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    """Gives each test, and each doctest, the same random numbers whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def validation() -> None:
    """Gives each test torch's default; importing Pyro turns validation off for everybody."""
    Distribution.set_default_validate_args(__debug__)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets; skips the test where there is none."""
    named = os.environ.get("IGR_DATA")
    if not named:
        pytest.skip("IGR_DATA is not set: it names the folder that holds mnist/, omniglot/, ...")
    folder = Path(named)
    if not folder.is_dir():
        pytest.skip(f"IGR_DATA names {named}, which is not a folder")
    return folder
