"""Compilers, exports, traces and transforms run what `docs/compile.md` says they do."""

from __future__ import annotations

import pytest

import drivers
from drivers import DRIVERS, OPERATIONS

PAGE = drivers.rows(drivers.PAGE.read_text())
CHEAP = ("trace", "fake tensors", "vmap")
# One of each kind; the others are slow together.
FIRST = ("igr_softmax", "gumbel_softmax, allowed")

pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_page_has_every_function() -> None:
    """`python tests/drivers.py`, with the names of operations or without, writes it."""
    assert list(PAGE) == [name for name in OPERATIONS if name in PAGE]
    assert set(drivers.FUNCTIONS) <= set(PAGE)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("operation", FIRST)
def test_the_page_is_right(operation: str, driver: str) -> None:
    assert drivers.works(operation, driver) == PAGE[operation][driver]


@pytest.mark.parametrize("driver", CHEAP)
@pytest.mark.parametrize("operation", [name for name in drivers.FUNCTIONS if name not in FIRST])
def test_the_page_is_right_on_all_functions(operation: str, driver: str) -> None:
    assert drivers.works(operation, driver) == PAGE[operation][driver]


@pytest.mark.slow
@pytest.mark.parametrize("operation", [name for name in PAGE if name not in FIRST])
def test_the_page_is_right_on_everything(operation: str) -> None:
    for driver in DRIVERS:
        assert drivers.works(operation, driver) == PAGE[operation][driver], driver
