r"""Gradient estimators for expectations under a categorical distribution, with one interface for all.

``loss = estimator(q, f)``: q is a relaxation (`igr.SoftmaxIGR`, `igr.GumbelSoftmax`, ...) that holds one variable for
each entry of its batch shape, f maps samples ``(*batch, K)``, one-hot or relaxed, to a loss for each batch element.
``loss.sum().backward()`` leaves the estimated gradient on q's parameters and ``loss.detach()`` is the estimate of
:math:`\mathbb E[f]`. All are `torch.nn.Module`; what they have to remember or learn lives in them.

**Which dimensions are variables.** The shape that f returns says so. It must be a prefix of ``q.batch_shape``; the
dimensions that are left are the variables of one element. With a batch shape (100, 20), an f that returns shape (100,)
has 20 variables for each of 100 elements, and log-probabilities are summed over the 20. Elements must not influence
each other's values.

**What f may depend on.** Anything: a decoder's parameters and q's own parameters (a KL term, say). Their direct
gradients come out right too. f is minimised, so a KL term is added: :math:`f = -\log p(x \mid z) + \mathrm{KL}`.

**Several samples.** ``num_samples=S`` averages S draws. f is then called S times, or, with ``sample_axis=True``, once
with samples ``(S, *batch, K)``, for values with a leading S.

**Random numbers.** ``estimator(q, f, generator=g)`` draws from g. A sequence of generators has one for each entry of
q's first batch dimension: runs that are trained side by side then draw what each draws alone.

**What each is.** Class attributes say what an estimator needs of q and of f, whether it is biased, and how often it
evaluates f: `Estimator`. An estimator of one's own declares the same and implements ``_estimate``.
"""

from igr.estimators.antithetic import CARMS, DisARM
from igr.estimators.base import Differentiable, Estimator, Needs
from igr.estimators.control_variates import (
    ControlNetwork,
    DoubleControlVariate,
    Rebar,
    Relax,
    Rodeo,
)
from igr.estimators.couplings import Coupling, coupling
from igr.estimators.exact import Enumerate
from igr.estimators.relaxed import Pathwise, StickingTheLanding, sticking_the_landing_kl
from igr.estimators.score import LeaveOneOut, Reinforce, RunningMean
from igr.estimators.second_order import MVE, ZGR, ReinMax, ReinMaxRao
from igr.estimators.straight_through import (
    GappedStraightThrough,
    RaoBlackwellStraightThrough,
    RelaxedStraightThrough,
    StraightThrough,
)
from igr.estimators.unordered import UnorderedSet

__all__ = [
    "CARMS",
    "MVE",
    "ZGR",
    "ControlNetwork",
    "Coupling",
    "Differentiable",
    "DisARM",
    "DoubleControlVariate",
    "Enumerate",
    "Estimator",
    "GappedStraightThrough",
    "LeaveOneOut",
    "Needs",
    "Pathwise",
    "RaoBlackwellStraightThrough",
    "Rebar",
    "ReinMax",
    "ReinMaxRao",
    "Reinforce",
    "Relax",
    "RelaxedStraightThrough",
    "Rodeo",
    "RunningMean",
    "StickingTheLanding",
    "StraightThrough",
    "UnorderedSet",
    "coupling",
    "sticking_the_landing_kl",
]
