"""Every family by its name on the command line."""

from __future__ import annotations

from igr.experiments.models.family import Family
from igr.experiments.models.gaussian import (
    SharpStickBreakingFamily,
    SoftmaxIGRFamily,
    StickBreakingFamily,
)
from igr.experiments.models.gumbel import GumbelSoftmaxFamily
from igr.experiments.models.planar import PlanarFamily

FAMILIES: dict[str, type[Family]] = {
    "igr-i": SoftmaxIGRFamily,
    "gs": GumbelSoftmaxFamily,
    "igr-planar": PlanarFamily,
    "igr-sb": StickBreakingFamily,
    "igr-sb-sharp": SharpStickBreakingFamily,
}
