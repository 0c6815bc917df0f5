"""Everything that `import igr` offers by name; `igr` imports it at the first use of any."""

from igr import constraints, discrete, estimators, functional, kl, nn, objectives, priors
from igr.countable import CountableIGR
from igr.distributions import (
    IGR,
    GumbelSoftmax,
    PlanarIGR,
    RecoveredCategorical,
    Relaxation,
    SharpStickBreakingIGR,
    SoftmaxIGR,
    StickBreakingIGR,
)
from igr.functional import (
    gumbel_softmax,
    igr_softmax,
    planar_igr_softmax,
    sharp_stick_breaking_igr_softmax,
    stick_breaking_igr_softmax,
)
from igr.kl import kl_divergence, monte_carlo_kl, plug_in_kl
from igr.objectives import elbo, importance_weighted_bound, released_estimate
from igr.priors import match
from igr.transforms import (
    Close,
    Compose,
    Planar,
    Sharpen,
    SoftmaxPlusPlus,
    StickBreaking,
    VertexInterpolation,
)

kl.look_up_rules()

__all__ = [
    "IGR",
    "Close",
    "Compose",
    "CountableIGR",
    "GumbelSoftmax",
    "Planar",
    "PlanarIGR",
    "RecoveredCategorical",
    "Relaxation",
    "SharpStickBreakingIGR",
    "Sharpen",
    "SoftmaxIGR",
    "SoftmaxPlusPlus",
    "StickBreaking",
    "StickBreakingIGR",
    "VertexInterpolation",
    "constraints",
    "discrete",
    "elbo",
    "estimators",
    "functional",
    "gumbel_softmax",
    "igr_softmax",
    "importance_weighted_bound",
    "kl",
    "kl_divergence",
    "match",
    "monte_carlo_kl",
    "nn",
    "objectives",
    "planar_igr_softmax",
    "plug_in_kl",
    "priors",
    "released_estimate",
    "sharp_stick_breaking_igr_softmax",
    "stick_breaking_igr_softmax",
]
