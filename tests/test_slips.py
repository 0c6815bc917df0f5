"""What is not of the kind that an argument is: a ValueError that names the argument, and never torch's own error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Laplace

import igr
from igr import conditional, discrete, estimators, nn, objectives, priors, stick_breaking
from igr import functional as fn

Z, ONE = torch.zeros(3, 4), torch.ones(3, 4)
LOGITS, PROBS = torch.zeros(3, 5), torch.full((3, 5), 0.2)
ONEHOT = torch.eye(5)[:3]
Q, G = igr.SoftmaxIGR(Z, ONE, 0.5), igr.GumbelSoftmax(0.5, logits=LOGITS)
COUNTABLE = igr.CountableIGR((Z + 9.0, ONE), 0.5)
CLOSE = igr.SoftmaxPlusPlus(0.5)


class Kind:
    """What an argument takes, by values that it does not."""

    anything = ("a", {}, object(), 1j, lambda: None)
    tensor = (*anything, None, 1.0, [1.0, 2.0], np.zeros(4))
    floats = (*tensor, torch.ones(3, 4, dtype=torch.int64), torch.ones(3, 4, dtype=torch.complex64))
    number = (*anything, True, [1.0, 2.0], np.zeros(4), torch.ones(2, 7), torch.ones(3, 4) > 0)
    one_number = (*number, torch.ones(3, 4), float("nan"), torch.ones((), requires_grad=True))
    whole = (*anything, True, 1.5, [2], np.zeros(4), -1, float("nan"))
    shape = ("a", object(), 1j, 5, True, 1.5, (1.5,), (-1,), (None,), np.zeros(4), torch.ones(2))
    seed = (*whole, None)


N = Kind.number
# A call, the arguments that it takes by name, and of each the kind.
CALLS: list[tuple[Callable[..., object], dict[str, tuple[Any, tuple[Any, ...]]]]] = [
    *(
        (
            form,
            {
                "loc": (Z, Kind.floats),
                "scale": (ONE, Kind.floats),
                "temperature": (0.5, N),
                "num_categories": (5, Kind.whole),
            },
        )
        for form in (igr.SoftmaxIGR, igr.StickBreakingIGR, igr.SharpStickBreakingIGR)
    ),
    (
        igr.IGR,
        {
            "loc": (Z, Kind.floats),
            "scale": (ONE, Kind.floats),
            "transform": (CLOSE, Kind.tensor),
        },
    ),
    (
        igr.IGR.from_base,
        {"base": (Independent(Laplace(Z, ONE), 1), Kind.tensor), "transform": (CLOSE, Kind.tensor)},
    ),
    (igr.GumbelSoftmax, {"temperature": (0.5, N), "logits": (LOGITS, Kind.floats[:5])}),
    (igr.RecoveredCategorical, {"probs": (PROBS, Kind.floats[:5])}),
    (igr.RecoveredCategorical, {"logits": (LOGITS, Kind.floats[:5])}),
    *(
        (
            form,
            {"probs": (PROBS, Kind.floats), "temperature": (0.5, N), "scale": (1.0, N)},
        )
        for form in (igr.SoftmaxIGR.from_probs, igr.SharpStickBreakingIGR.from_probs)
    ),
    (
        igr.SoftmaxIGR.from_logits,
        {"logits": (LOGITS, Kind.floats), "temperature": (0.5, N), "scale": (1.0, N)},
    ),
    *(
        (
            form.uniform,
            {
                "num_categories": (5, Kind.whole),
                "scale": (1.0, Kind.one_number),
                "batch_shape": ((), Kind.shape),
                "temperature": (0.5, Kind.anything),
            },
        )
        for form in (igr.SoftmaxIGR, igr.SharpStickBreakingIGR)
    ),
    (igr.GumbelSoftmax.uniform, {"num_categories": (5, Kind.whole), "temperature": (0.5, Kind.anything)}),
    (igr.GumbelSoftmax.uniform, {"num_categories": (5, ()), "temperature": (0.5, ()), "batch_shape": ((), Kind.shape)}),
    (
        lambda loc, **options: igr.CountableIGR((loc, ONE), **options),
        {"loc": (Z, Kind.floats), "temperature": (0.5, N), "precision": (0.9, Kind.one_number)},
    ),
    (
        nn.CountableParameters,
        {
            "initial": (4, Kind.whole),
            "maximum": (8, Kind.whole),
            "precision": (0.9, Kind.one_number),
            "loc": (0.0, Kind.anything),
            "scale": (1.0, Kind.anything),
        },
    ),
    (igr.SoftmaxPlusPlus, {"temperature": (0.5, Kind.anything), "delta": (1.0, Kind.anything)}),
    (igr.Sharpen, {"temperature": (0.5, Kind.anything)}),
    (igr.VertexInterpolation, {"temperature": (0.5, Kind.anything)}),
    (igr.Planar, {"u": (Z, Kind.floats), "w": (ONE, Kind.floats), "b": (Z[:, 0], Kind.floats)}),
    (igr.Compose, {"parts": ([CLOSE], Kind.floats)}),
    *(
        (method, {"sample_shape": ((2,), Kind.shape)})
        for q in (Q, G, COUNTABLE, igr.IGR.from_base(Independent(Laplace(Z, ONE), 1), CLOSE))
        for method in (q.rsample, q.sample, q.rsample_log, q.rsample_and_log_prob, q.straight_through)
    ),
    (Q.discrete().sample, {"sample_shape": ((2,), Kind.shape)}),
    *(
        (q.expand, {"batch_shape": ((2, 3), (*Kind.shape, (4,), (), (3, 2)))})
        for q in (Q, G, COUNTABLE)
    ),
    (Q.discrete, {"num_samples": (None, Kind.whole), "tolerance": (None, Kind.one_number)}),
    (Q.entropy, {"num_samples": (1, Kind.whole)}),
    (igr.monte_carlo_kl, {"q": (Q, Kind.tensor), "p": (G, Kind.tensor), "num_samples": (1, Kind.whole)}),
    (
        estimators.sticking_the_landing_kl,
        {"q": (Q, Kind.tensor), "prior": (Q, Kind.tensor), "num_samples": (1, Kind.whole)},
    ),
    (igr.elbo, {"log_likelihood": (Z, Kind.tensor), "kl": (Z, Kind.number)}),
    (
        igr.importance_weighted_bound,
        {
            "log_likelihood": (Z, Kind.tensor),
            "log_prior": (Z, Kind.tensor),
            "log_q": (Z, Kind.tensor),
        },
    ),
    (objectives.released_estimate, {"log_likelihood": (Z, Kind.tensor), "kl": (Z[0], Kind.number)}),
    (
        igr.match,
        {
            "target": (PROBS, Kind.anything),
            "scale": (1.0, N),
            "temperature": (0.5, N),
            "num_categories": (None, Kind.whole),
            "seed": (0, Kind.seed),
            "family": (igr.SoftmaxIGR, Kind.tensor[:4]),
        },
    ),
    (priors.distance, {"q": (Q, Kind.tensor), "target": (PROBS, Kind.anything), "seed": (0, Kind.seed)}),
    (priors.hazard_loc, {"probs": (PROBS, Kind.floats), "scale": (1.0, N)}),
    (
        discrete.argmax_log_probs,
        {
            "loc": (Z, Kind.tensor),
            "scale": (ONE, Kind.tensor),
            "threshold": (0.0, Kind.number),
            "tolerance": (None, Kind.one_number),
        },
    ),
    (discrete.log_normal_cdf, {"x": (Z, Kind.floats)}),
    (
        lambda pseudo_count: discrete.monte_carlo_probs(
            lambda n: ONEHOT.expand(n, 3, 5), 2, pseudo_count=pseudo_count
        ),
        {"pseudo_count": (0.0, Kind.one_number)},
    ),
    (
        stick_breaking.leader_log_probs,
        {
            "loc": (Z, Kind.tensor),
            "scale": (ONE, Kind.tensor),
            "smallest_scale": (None, Kind.one_number),
        },
    ),
    (
        conditional.conditional_gaussian,
        {"loc": (Z, Kind.floats), "scale": (ONE, Kind.tensor), "onehot": (ONEHOT, Kind.tensor)},
    ),
    (conditional.conditional_gumbel, {"logits": (LOGITS, Kind.floats), "onehot": (ONEHOT, Kind.tensor)}),
    (
        conditional.truncated_normal_below,
        dict.fromkeys(("loc", "scale", "bound", "noise"), (0.5 * ONE, Kind.tensor)),
    ),
    *(
        (
            lambda head=head, **options: head(**{"in_features": 3, "num_categories": 4} | options),
            {
                "in_features": (3, Kind.whole),
                "num_categories": (4, Kind.whole),
                "num_variables": (None, Kind.whole),
                "temperature": (0.5, Kind.anything),
                "gain": (0.3, Kind.one_number),
            },
        )
        for head in (nn.SoftmaxIGRHead, nn.SharpStickBreakingIGRHead, nn.PlanarIGRHead, nn.GumbelSoftmaxHead)
    ),
    (nn.SoftmaxIGRHead(3, num_categories=5), {"features": (torch.zeros(2, 3), Kind.floats)}),
    (nn.Prior, {"family": (igr.SoftmaxIGR, Kind.tensor[:4]), "target": (5, Kind.anything), "temperature": (0.5, ())}),
    (nn.Prior, {"family": (igr.SoftmaxIGR, ()), "target": (5, ()), "temperature": (0.5, Kind.anything)}),
    (nn.PlanarFlow, {"num_coordinates": (4, Kind.whole), "batch_shape": ((), Kind.shape)}),
    (nn.LinearTemperature, {"start": (1.0, Kind.anything), "end": (0.5, Kind.anything), "num_steps": (3, Kind.whole)}),
    (nn.KLWarmup, {"start": (0.0, Kind.anything), "end": (1.0, Kind.anything), "num_steps": (3, Kind.whole)}),
    (nn.LearnedTemperature, {"initial": (1.0, Kind.anything)}),
    (estimators.RunningMean, {"decay": (0.9, Kind.one_number), "shape": ((), Kind.shape)}),
    (estimators.Rebar, {"temperature": (0.5, Kind.anything), "eta": (1.0, Kind.anything)}),
    (
        estimators.ControlNetwork,
        {
            "shape": ((5,), Kind.shape),
            "hidden": (4, Kind.whole),
            "stack": ((), Kind.shape),
            "factor": (0.1, Kind.one_number),
        },
    ),
    (estimators.GappedStraightThrough, {"gap": (1.0, Kind.one_number), "temperature": (1.0, Kind.anything)}),
    (
        fn.gaussian_kl,
        {"loc": (Z, Kind.floats), "scale": (ONE, Kind.tensor), "loc0": (0.0, N), "scale0": (1.0, N)},
    ),
    (fn.gaussian_log_prob, {"y": (Z, Kind.floats), "loc": (0.0, N), "scale": (1.0, N)}),
    (fn.exp_concrete_log_prob, {"log_z": (Z, Kind.floats), "logits": (0.0, N), "temperature": (0.5, N)}),
    *(
        (call, {"y": (Z, Kind.floats), "u": (Z, Kind.tensor), "w": (ONE, Kind.tensor), "b": (0.0, N)})
        for call in (fn.planar, lambda y, **options: fn.planar_inverse(y, **options))
    ),
    (
        fn.igr_softmax,
        {
            "loc": (Z, Kind.floats),
            "scale": (ONE, Kind.tensor),
            "tau": (0.5, N),
            "delta": (1.0, N),
            "noise": (Z, (*Kind.anything, [1.0], np.zeros((3, 4)))),
        },
    ),
    (fn.gumbel_noise, {"like": (Z, Kind.floats), "generator": (None, (*Kind.anything, 0, Z))}),
    (fn.straight_through, {"hard": (ONEHOT, Kind.tensor), "relaxed": (PROBS, Kind.floats)}),
]  # fmt: skip

CASES = [
    (call, argument, {name: good for name, (good, _) in arguments.items()}, kind)
    for call, arguments in CALLS
    for argument, (_, kind) in arguments.items()
    if kind
]


@pytest.mark.parametrize(
    "call, argument, good, wrong",
    CASES,
    ids=[f"{getattr(call, '__qualname__', call)}-{name}" for call, name, _, _ in CASES],
)
def test_what_is_of_another_kind(
    call: Callable[..., object], argument: str, good: dict[str, Any], wrong: tuple[Any, ...]
) -> None:
    call(**good)
    for value in wrong:
        if value is None and good[argument] is None:
            continue
        with pytest.raises(ValueError, match=rf"\b{argument}\b|\bx\b|\binitial\b"):
            call(**(good | {argument: value}))


@pytest.mark.parametrize("form", [igr.SoftmaxIGR, igr.StickBreakingIGR, igr.SharpStickBreakingIGR])
def test_uniform_of_several_scales_says_what_makes_it(form: Any) -> None:
    scale = torch.tensor([0.5, 1.0, 2.0])
    with pytest.raises(
        ValueError, match=rf"scale: expected a positive finite number.*igr\.{form.__name__}"
    ):
        form.uniform(4, 0.5, scale)
    K = torch.tensor(4 if form is not igr.StickBreakingIGR else 3)
    target = torch.full((4,), 1.0 / float(K))
    target[int(K) :] = 0.0
    found: Tensor = igr.match(target, form, 0.5, scale=scale).discrete().probs
    assert (found - target).abs().max() < 1e-5
