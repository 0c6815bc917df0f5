"""What the functions say to arguments that do not fit, and that they take what `torch.nn.functional` takes."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import igr
from igr import functional as fn

Z, O, LOGITS = torch.zeros(2, 3), torch.ones(2, 3), torch.zeros(2, 4)
NONE = torch.zeros(4, dtype=torch.bool)
SOME = torch.tensor([True, False, True, False])

Call = Callable[..., Tensor]
GAUSSIAN: dict[str, Call] = {
    "igr": fn.igr_softmax,
    "stick_breaking": fn.stick_breaking_igr_softmax,
    "sharp": fn.sharp_stick_breaking_igr_softmax,
    "planar": lambda loc, scale, *args, **options: fn.planar_igr_softmax(
        loc, scale, lambda y: y, *args, **options
    ),
}
# All samplers as functions of one tensor that has K entries along `dim`, and of a temperature.
SAMPLERS: dict[str, Call] = {
    "gumbel": fn.gumbel_softmax,
    **{
        name: lambda x, *args, f=f, **options: f(
            x.narrow(options.get("dim", -1), 1, x.shape[options.get("dim", -1)] - 1),
            torch.ones_like(x).narrow(
                options.get("dim", -1), 1, x.shape[options.get("dim", -1)] - 1
            ),
            *args,
            **options,
        )
        for name, f in GAUSSIAN.items()
    },
}
MASKED: dict[str, Call] = {
    "igr_softmax": lambda allowed: fn.igr_softmax(Z, O, allowed=allowed),
    "sharp_stick_breaking_igr_softmax": lambda allowed: fn.sharp_stick_breaking_igr_softmax(
        Z, O, allowed=allowed
    ),
    "gumbel_softmax": lambda allowed: fn.gumbel_softmax(LOGITS, allowed=allowed),
    "softmax_plus_plus": lambda allowed: fn.softmax_plus_plus(Z, allowed=allowed),
    "log_softmax_plus_plus": lambda allowed: fn.log_softmax_plus_plus(Z, allowed=allowed),
    "log_stick_breaking": lambda allowed: fn.log_stick_breaking(Z, allowed=allowed),
    "sharp_stick_breaking": lambda allowed: fn.sharp_stick_breaking(Z, allowed=allowed),
    "log_sharpen": lambda allowed: fn.log_sharpen(LOGITS, 0.5, allowed=allowed),
}
ONE_ARGUMENT: dict[str, Call] = {
    "softmax_plus_plus": fn.softmax_plus_plus,
    "log_softmax_plus_plus": fn.log_softmax_plus_plus,
    "log_softmax_plus_plus_inverse": fn.log_softmax_plus_plus_inverse,
    "log_stick_breaking": fn.log_stick_breaking,
    "log_stick_breaking_inverse": fn.log_stick_breaking_inverse,
    "stick_breaking_softmax_plus_plus": fn.stick_breaking_softmax_plus_plus,
    "sharp_stick_breaking": fn.sharp_stick_breaking,
    "log_sharpen": lambda x: fn.log_sharpen(x, 0.5),
    "log_sharpen_inverse": lambda x: fn.log_sharpen_inverse(x, 0.5),
    "log_vertex_interpolation": lambda x: fn.log_vertex_interpolation(x, 0.5),
    "log_vertex_interpolation_inverse": lambda x: fn.log_vertex_interpolation_inverse(x, 0.5),
    "planar": lambda x: fn.planar(x, O, O, torch.zeros(2))[0],
    "planar_inverse": lambda x: fn.planar_inverse(x, O, O, torch.zeros(2)),
    "gaussian_kl": lambda x: fn.gaussian_kl(x, O),
    "gaussian_log_prob": fn.gaussian_log_prob,
    "exp_concrete_log_prob": lambda x: fn.exp_concrete_log_prob(x, 0.0, 0.5),
    "gumbel_softmax": fn.gumbel_softmax,
    **{name: lambda x, f=f: f(x, O) for name, f in GAUSSIAN.items()},
}


@pytest.mark.parametrize("name", ONE_ARGUMENT)
@pytest.mark.parametrize(
    "value, message",
    [
        (np.zeros((2, 3)), r"\w+: expected a tensor, got ndarray; torch.as_tensor"),
        ([[0.0, 0.0]], r"\w+: expected a tensor, got list"),
        (0.5, r"\w+: expected a tensor, got float"),
        (
            torch.zeros(2, 3, dtype=torch.int64),
            r"\w+: expected floating-point values, got torch.int64",
        ),
        (torch.zeros(2, 3, dtype=torch.complex64), r"\w+: expected floating-point values"),
        (torch.tensor(0.5), r"\w+: expected shape \(\*batch, K(-1)?\), got a scalar"),
    ],
)
def test_what_is_no_tensor_of_numbers(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ONE_ARGUMENT[name](value)


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize(
    "allowed, message",
    [
        (NONE, "allowed: expected at least one allowed category for each element"),
        (torch.stack([SOME, NONE]), "allowed: expected at least one allowed category"),
        (SOME.float(), "allowed: expected a boolean tensor, got torch.float32"),
        ([True, False, True, True], "allowed: expected a boolean tensor, got list"),
        (SOME[:-1], r"allowed: expected shape \(\*batch, 4\), .*got \(3,\)"),
        (torch.ones(2, 3, dtype=torch.bool), r"allowed: expected shape .*got \(2, 3\)"),
        (torch.tensor(True), r"allowed: expected shape .*got \(\)"),
    ],
)
def test_masks_that_do_not_fit(name: str, allowed: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MASKED[name](allowed)


def test_logits_that_rule_out_all() -> None:
    logits = torch.tensor([[0.0, -math.inf], [-math.inf, -math.inf]])
    with pytest.raises(ValueError, match="logits: expected at least one possible category"):
        fn.gumbel_softmax(logits, 0.5)
    with pytest.raises(ValueError, match="logits: expected at least one possible category"):
        fn.gumbel_softmax(logits[:1], 0.5, allowed=torch.tensor([False, True]))
    with pytest.raises(ValueError, match=r"logits: expected at least one category, got .*\(2, 0\)"):
        fn.gumbel_softmax(torch.zeros(2, 0))


@pytest.mark.parametrize("name", GAUSSIAN)
@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_scales_that_are_not_positive(name: str, bad: float) -> None:
    scale = torch.tensor([[1.0, 1.0, bad]])
    with pytest.raises(ValueError, match=r"scale: expected positive values, .* 1 invalid"):
        GAUSSIAN[name](Z, scale)


@pytest.mark.parametrize("plain", [False, True])
def test_scales_of_a_divergence(plain: bool) -> None:
    dtype = torch.bfloat16 if plain else torch.float32
    loc, scale = Z.to(dtype), O.to(dtype)
    for bad in (-1.0, 0.0):
        wrong = torch.tensor([[1.0, bad, 1.0]], dtype=dtype)
        with pytest.raises(ValueError, match="scale: expected positive values"):
            fn.gaussian_kl(loc, wrong)
        with pytest.raises(ValueError, match="scale0: expected positive finite values"):
            fn.gaussian_kl(loc, scale, scale0=wrong)
        with pytest.raises(ValueError, match="scale0: expected a positive finite number"):
            fn.gaussian_kl(loc, scale, scale0=bad)
    with pytest.raises(ValueError, match=r"scale: expected a tensor, got float"):
        fn.gaussian_kl(loc, 1.0)
    for name in ("loc0", "scale0"):
        with pytest.raises(ValueError, match=rf"{name}: expected .*\(2, 3\), got \(4,\)"):
            fn.gaussian_kl(loc, scale, **{name: torch.ones(4, dtype=dtype)})
    # What is infinite or no number for another reason is no error.
    assert fn.gaussian_kl(loc + math.inf, scale).isinf().all()
    assert fn.gaussian_kl(loc + math.nan, scale).isnan().all()


@pytest.mark.parametrize("name", ["igr", "stick_breaking", "sharp"])
def test_calls_that_read_like_those_of_gumbel_softmax_say_what_to_write(name: str) -> None:
    for call in (
        lambda: GAUSSIAN[name](LOGITS, 0.1),
        lambda: GAUSSIAN[name](LOGITS, tau=0.1),
        lambda: GAUSSIAN[name](LOGITS),
    ):
        with pytest.raises(ValueError, match=r"scale: .*K-1 .*igr_softmax\(loc, scale, tau"):
            call()


def test_the_signature_of_torch() -> None:
    x = torch.randn(3, 4, 5)
    torch.manual_seed(0)
    expected = fn.gumbel_softmax(x, 0.7, dim=1)
    for call in (
        lambda: fn.gumbel_softmax(x, 0.7, False, 1e-10, 1),
        lambda: fn.gumbel_softmax(x, 0.7, False, eps=1e-10, dim=1),
        lambda: fn.gumbel_softmax(x, 0.7, eps=0.1, dim=1),
    ):
        torch.manual_seed(0)
        with pytest.warns(UserWarning, match="eps: it has no effect"):
            assert torch.equal(call(), expected)
    with pytest.warns(UserWarning, match="eps"):
        assert fn.gumbel_softmax(x, 0.7, False, 1e-10).shape == x.shape
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.manual_seed(0)
        assert torch.equal(fn.gumbel_softmax(x, 0.7, False, 1), expected)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("logits, tau, dim", [
    ((4, 3), (1,), -1), ((4, 3), (4, 1), -1), ((4, 3), (1, 1), -1), ((4, 3), (6, 1, 1), -1),
    ((4, 3), (6, 4, 1), -1), ((3,), (1,), -1), ((3,), (5, 1), -1), ((2, 3, 5), (2, 1, 5), 1),
    ((2, 3, 5, 4), (2, 1, 5, 4), 1), ((2, 3, 5, 4), (2, 1, 1, 1), -3), ((3, 2), (1, 2), 0),
])  # fmt: skip
def test_temperatures_have_the_shapes_that_torch_takes(
    name: str, logits: tuple[int, ...], tau: tuple[int, ...], dim: int
) -> None:
    x, t = torch.randn(logits), torch.rand(tau) + 0.2
    expected = F.gumbel_softmax(x, t, dim=dim)
    assert SAMPLERS[name](x, t, dim=dim).shape == expected.shape
    if name == "gumbel":
        noise = fn.gumbel_noise(x)
        found = fn.gumbel_softmax(x, t, dim=dim, noise=noise)
        torch.testing.assert_close(found, torch.softmax((x + noise) / t, dim))


@pytest.mark.parametrize("name", SAMPLERS)
def test_temperatures_that_fit_neither_way(name: str) -> None:
    for shape in ((4, 3), (5,), (3, 1), (4, 4)):
        with pytest.raises(
            ValueError, match=rf"tau: expected .*broadcasts against \(4,\).*got \({shape[0]}, ?"
        ):
            SAMPLERS[name](torch.zeros(4, 3), torch.ones(shape))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    "number", [np.float32(0.5), np.float64(0.5), np.array(0.5), np.float16(0.5), torch.tensor(0.5)]
)
def test_numbers_of_other_libraries(name: str, number: Any) -> None:
    torch.manual_seed(0)
    expected = SAMPLERS[name](LOGITS, 0.5)
    torch.manual_seed(0)
    found = SAMPLERS[name](LOGITS, number)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    assert SAMPLERS[name](LOGITS, np.int64(1)).shape == LOGITS.shape
    schedule = igr.nn.LinearTemperature(1.0, 0.5, num_steps=10)
    for bad, message in (
        (np.int64(-1), "got -1"),
        (np.ones(2), "got ndarray"),
        ("0.5", "got str"),
        (schedule, "got LinearTemperature; call the module for its value now"),
    ):
        with pytest.raises(ValueError, match=f"tau: .*{message}"):
            SAMPLERS[name](LOGITS, bad)


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("name", GAUSSIAN)
@pytest.mark.parametrize("first", DTYPES)
@pytest.mark.parametrize("second", DTYPES)
def test_dtypes_are_promoted_as_torchs(name: str, first: torch.dtype, second: torch.dtype) -> None:
    loc = torch.zeros(2, 3, dtype=first, requires_grad=True)
    scale = torch.ones(2, 3, dtype=second, requires_grad=True)
    expected = (loc + scale).dtype
    for hard in (False, True):
        z = GAUSSIAN[name](loc, scale, 0.5, hard)
        assert z.dtype == expected
        z.square().sum().backward()
    assert loc.grad is not None
    assert scale.grad is not None
    assert (loc.grad.dtype, scale.grad.dtype) == (first, second)
    precise = torch.promote_types(expected, torch.float32)
    assert fn.gaussian_kl(loc, scale).dtype == precise
    assert GAUSSIAN[name](loc, scale, torch.tensor(0.5, dtype=torch.float64)).dtype == expected


# Functions of K-1 numbers or of K logarithms, and of a temperature.
TEMPERED: dict[str, Call] = {
    "softmax_plus_plus": lambda x, t: fn.softmax_plus_plus(x, t, 0.3),
    "log_softmax_plus_plus": lambda x, t: fn.log_softmax_plus_plus(x, t, 0.3),
    "log_softmax_plus_plus_inverse": lambda x, t: fn.log_softmax_plus_plus_inverse(x, t, 0.3),
    "stick_breaking_softmax_plus_plus": lambda x, t: fn.stick_breaking_softmax_plus_plus(x, t, 0.3),
    "sharp_stick_breaking": fn.sharp_stick_breaking,
    "log_sharpen": fn.log_sharpen,
    "log_sharpen_inverse": fn.log_sharpen_inverse,
    "log_vertex_interpolation": fn.log_vertex_interpolation,
    "log_vertex_interpolation_inverse": fn.log_vertex_interpolation_inverse,
    "exp_concrete_log_prob": lambda x, t: fn.exp_concrete_log_prob(x, 0.0, t),
}
# And those without.
LOGARITHMIC: dict[str, Call] = {
    "log_stick_breaking": lambda x, t: fn.log_stick_breaking(x),
    "log_stick_breaking_inverse": lambda x, t: fn.log_stick_breaking_inverse(x),
    "gaussian_log_prob": lambda x, t: fn.gaussian_log_prob(x, 0.5, t),
    **{name: f for name, f in TEMPERED.items() if "log" in name},
}
HALF = DTYPES[:2]
DELTAS: dict[str, Call] = {
    "softmax_plus_plus": lambda x, d: fn.softmax_plus_plus(x, 0.5, d),
    "log_softmax_plus_plus": lambda x, d: fn.log_softmax_plus_plus(x, 0.5, d),
    "log_softmax_plus_plus_inverse": lambda x, d: fn.log_softmax_plus_plus_inverse(x, 0.5, d),
    "stick_breaking_softmax_plus_plus": lambda x, d: fn.stick_breaking_softmax_plus_plus(x, 0.5, d),
    **{
        f"{name}_igr_softmax": lambda x, d, f=f: f(x, torch.ones_like(x), delta=d)
        for name, f in GAUSSIAN.items()
        if name != "sharp"
    },
}
# What must be positive: a function of x ``(4, 3)`` and of it, and its name.
POSITIVE: dict[str, tuple[Call, str]] = {
    **{f"{name}, temperature": (f, "temperature") for name, f in TEMPERED.items()},
    **{f"{name}, delta": (f, "delta") for name, f in DELTAS.items()},
    **{f"{name}, tau": (f, "tau") for name, f in SAMPLERS.items()},
    "gaussian_kl, scale0": (lambda x, s: fn.gaussian_kl(x, torch.ones_like(x), 0.0, s), "scale0"),
    "gaussian_log_prob, scale": (lambda x, s: fn.gaussian_log_prob(x, 0.0, s), "scale"),
}
positive = pytest.mark.parametrize("name", POSITIVE)


def test_each_temperature_delta_and_scale_is_named() -> None:
    """Or a function that is added would go unchecked."""
    for name in fn.__all__:
        for parameter in inspect.signature(getattr(fn, name)).parameters:
            if parameter in ("temperature", "delta", "tau", "scale0") and not name.endswith(
                "igr_softmax"
            ):
                assert (
                    f"{name.removesuffix('_softmax') if parameter == 'tau' else name}, {parameter}"
                    in POSITIVE
                )


@positive
@pytest.mark.parametrize(
    "bad", [0, 0.0, -1, -0.5, math.nan, math.inf, "0.5", None, np.float32(-1.0)]
)
def test_numbers_that_are_not_positive(name: str, bad: Any) -> None:
    call, argument = POSITIVE[name]
    with pytest.raises(ValueError, match=rf"^{argument}: expected a positive (finite )?number"):
        call(torch.zeros(4, 3), bad)


@positive
@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
@pytest.mark.parametrize("shape", [(), (1,), (4, 1)])
def test_tensors_that_are_not_positive(name: str, shape: tuple[int, ...], bad: float) -> None:
    """One entry among others, under a gradient too."""
    call, argument = POSITIVE[name]
    value = torch.ones(shape)
    value.view(-1)[-1] = bad
    if not ("scale" in argument or argument == "tau" or "igr_softmax" in name):
        value = value.squeeze(-1)
    for given in (value, value.double().requires_grad_()):
        with pytest.raises(
            ValueError, match=rf"^{argument}: expected positive .* 1 invalid element"
        ):
            call(torch.zeros(4, 3), given)
    with pytest.raises(ValueError, match=rf"^{argument}: expected positive"):
        torch.func.grad(lambda v: call(torch.zeros(4, 3), v).sum())(value)


@positive
def test_shapes_that_do_not_fit(name: str) -> None:
    call, argument = POSITIVE[name]
    for shape in ((5,), (2, 4, 2), (4, 5)):
        with pytest.raises(
            ValueError, match=rf"^{argument}: expected .*broadcasts against .*got \({shape[0]},"
        ):
            call(torch.zeros(4, 3), torch.ones(shape))


@positive
def test_values_that_fit_are_left_alone(name: str) -> None:
    """Whole numbers, NumPy's, those of an empty batch, and a batch that broadcasts."""
    call, argument = POSITIVE[name]
    torch.manual_seed(0)
    expected = call(torch.zeros(4, 3), 1.0)
    batch = torch.ones(4, 1) if "scale" in argument else torch.ones(4)
    for one in (
        1,
        np.float64(1.0),
        torch.tensor(1.0),
        torch.ones((), dtype=torch.int64),
        torch.ones(1),
        batch,
    ):
        torch.manual_seed(0)
        torch.testing.assert_close(call(torch.zeros(4, 3), one), expected)
    for empty in (1.0, torch.tensor(1.0), batch[:0]):
        assert call(torch.zeros(0, 3), empty).shape == (0, *expected.shape[1:])


@positive
def test_checks_can_be_left_out(name: str) -> None:
    """By torch's default, and by the argument, where values are known to be right."""
    call, argument = POSITIVE[name]
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        call(torch.zeros(4, 3), torch.tensor(-1.0))
        with pytest.raises(ValueError, match=rf"^{argument}: expected a positive"):
            call(torch.zeros(4, 3), -1.0)
    finally:
        torch.distributions.Distribution.set_default_validate_args(__debug__)


@positive
@pytest.mark.parametrize("driver", ["compile", "vmap", "grad", "make_fx", "export"])
def test_checks_under_drivers(name: str, driver: str) -> None:
    """They look at no values there, and cost no graph break."""
    call, argument = POSITIVE[name]
    noise_free = "softmax_plus_plus" in name or "log_" in name or name.startswith(("sharp_", "exp"))
    x, t = torch.randn(4, 3), 0.3 + 0.6 * torch.rand(4)
    t = t.unsqueeze(-1) if "scale" in argument else t
    torch.manual_seed(0)
    expected = call(x, t)
    torch.manual_seed(0)
    if driver == "compile":
        torch.compiler.reset()
        found = torch.compile(call, fullgraph=True, backend="eager")(x, t)
    elif driver == "vmap":
        found = torch.func.vmap(call, randomness="different")(x, t)
    elif driver == "grad":
        found = torch.func.vjp(call, x, t)[0]
    elif driver == "make_fx":
        found = make_fx(lambda x, t: call(x, t))(x, t)(x, t)
    else:

        class Module(torch.nn.Module):
            def forward(self, x: Tensor, t: Tensor) -> Tensor:
                return call(x, t)

        found = torch.export.export(Module(), (x, t)).module()(x, t)
    assert found.shape == expected.shape
    if noise_free:
        torch.testing.assert_close(found, expected)


TINY = {
    **{f"{name}, temperature": f for name, f in TEMPERED.items()},
    **{f"{name}, tau": f for name, f in SAMPLERS.items()},
    "SoftmaxPlusPlus": lambda x, t: igr.SoftmaxPlusPlus(t)(x),
    "Sharpen": lambda x, t: igr.Sharpen(t)(torch.full_like(x, 0.2)),
    "VertexInterpolation": lambda x, t: igr.VertexInterpolation(t)(torch.full_like(x, 0.2)),
    "GumbelSoftmax": lambda x, t: igr.GumbelSoftmax(t, logits=x).rsample(),
    "CountableIGR": lambda x, t: torch.as_tensor(
        igr.CountableIGR((x, torch.ones_like(x)), t).temperature
    ),
    "Head": lambda x, t: igr.nn.SoftmaxIGRHead(3, num_categories=2, temperature=t)(x).rsample(),
    "LinearTemperature": lambda x, t: igr.nn.LinearTemperature(1.0, t, 3)(),
    "ExponentialTemperature": lambda x, t: igr.nn.ExponentialTemperature(t, 1.0, 3)(),
    "LearnedTemperature": lambda x, t: igr.nn.LearnedTemperature(t)(),
    "Rebar": lambda x, t: igr.estimators.Rebar(temperature=t).log_temperature.exp(),
    "ReinMax": lambda x, t: igr.estimators.ReinMax(temperature=t),
}


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("tensor", [False, True])
def test_temperatures_at_which_float32_overflows(name: str, tensor: bool) -> None:
    """1e-16 serves, for samples and their gradients; scores divided by 1e-38, or by the square of 1e-19, overflow."""
    x = (3 * torch.randn(4, 3)).requires_grad_()
    for bad in (1e-17, 1e-30, 1e-39, 5e-324):
        if not tensor or bad > 1e-38:
            with pytest.raises(ValueError, match=r"^\w+: expected .* above 1e-16, got"):
                TINY[name](x, torch.tensor(bad) if tensor else bad)
    if name == "ReinMax":
        return
    t = torch.tensor(1.1e-16, requires_grad=True) if tensor else 1.1e-16
    found = TINY[name](x, t)
    assert found.isfinite().all()
    if tensor and found.requires_grad:
        found.sum().backward()
        assert all(v.grad is None or v.grad.isfinite().all() for v in (x, t))


def test_planar_flows_that_do_not_fit() -> None:
    y, u, b = torch.zeros(4, 3), torch.ones(3), torch.tensor(0.1)
    for call in (fn.planar, fn.planar_inverse):
        for name in ("u", "w"):
            arguments = {"u": u, "w": u, "b": b}
            for bad, came in (
                (torch.ones(2), r"\(2,\)"), (torch.ones(1), r"\(1,\)"), (torch.ones(4, 1), r"\(4, 1\)"),
                (torch.tensor(1.0), r"\(\)"), (1.0, "float"), (None, "NoneType"),
            ):  # fmt: skip
                with pytest.raises(
                    ValueError,
                    match=rf"^{name}: expected a tensor with 3 entries along .*got {came}",
                ):
                    call(y, **{**arguments, name: bad})
            with pytest.raises(
                ValueError, match=rf"^{name}: expected a shape that broadcasts .*got \(5, 3\)"
            ):
                call(y, **{**arguments, name: torch.ones(5, 3)})
            with pytest.raises(
                ValueError, match=rf"^{name}: expected a tensor with 3 entries along dimension -2"
            ):
                call(
                    y.mT,
                    **{**dict.fromkeys("uw", u.unsqueeze(1)), "b": b, name: torch.ones(4, 1)},
                    dim=0,
                )
        with pytest.raises(ValueError, match=r"^w: .* that of u, \(2, 1, 3\), got \(5, 1, 3\)"):
            call(y, torch.ones(2, 1, 3), torch.ones(5, 1, 3), b)
        with pytest.raises(ValueError, match=r"^b: .*without dimension -1, \(4,\), got \(3,\)"):
            call(y, u, u, u)
        found, other = (call(y, u, u, value) for value in (b, 0.1))
        torch.testing.assert_close(found, other)
    with pytest.raises(ValueError, match=r"^near: .* that of x, \(4, 3\), got \(4,\)"):
        fn.planar_inverse(y, u, u, b, near=torch.ones(4))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: fn.gaussian_log_prob(Z, torch.ones(4)), r"loc: .*that of y, \(2, 3\), got \(4,\)"),
        (lambda: fn.exp_concrete_log_prob(LOGITS, torch.ones(3), 0.5), r"logits: .*log_z, \(2, 4\), got \(3,\)"),
        (lambda: fn.straight_through(torch.ones(2, 4), Z), r"hard: .*relaxed, \(2, 3\), got \(2, 4\)"),
        (lambda: fn.gumbel_noise(torch.tensor([1])), "like: expected floating-point values, got torch.int64"),
        (lambda: fn.gumbel_noise([0.0]), "like: expected a tensor, got list"),
        (lambda: fn.igr_softmax(Z, O, noise=1.0), "noise: expected a tensor, got float"),
        (lambda: fn.gumbel_softmax(Z, noise=[0.0]), "noise: expected a tensor, got list"),
        (lambda: fn.log_vertex_interpolation(Z, 1.5), r"temperature: expected values in \(0, 1\], got 1.5"),
        (lambda: fn.log_vertex_interpolation_inverse(Z, torch.tensor(1.5)), r"temperature: expected values in \(0"),
        *[
            (lambda f=f: f(torch.zeros(2, 0)), r"log_[wz]: expected at least one category, got shape \(2, 0\)")
            for f in (
                fn.log_softmax_plus_plus_inverse, fn.log_stick_breaking_inverse,
                lambda x: fn.log_sharpen(x, 0.5), lambda x: fn.log_sharpen_inverse(x, 0.5),
                lambda x: fn.log_vertex_interpolation(x, 0.5), lambda x: fn.log_vertex_interpolation_inverse(x, 0.5),
                lambda x: fn.exp_concrete_log_prob(x, 0.0, 0.5),
            )
        ],
    ],
)  # fmt: skip
def test_other_arguments_that_do_not_fit(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_a_scale_is_looked_at_where_a_density_is_no_number() -> None:
    y = torch.zeros(4, 3)
    assert fn.gaussian_log_prob(y + math.nan).isnan().all()
    for bad in (0.0, -1.0, math.nan):
        scale = torch.ones(4, 3)
        scale[1, 2] = bad
        with pytest.raises(ValueError, match=r"^scale: expected positive values, .* 1 invalid"):
            fn.gaussian_log_prob(y, 0.0, scale)
        rows = fn.gaussian_log_prob(y, 0.0, scale, validate_args=False).isnan()
        assert rows.tolist() == [False, True, False, False]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize("name", TEMPERED)
def test_a_temperature_in_half_precision_is_the_number_that_it_stands_for(
    name: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = torch.randn(3, 100).log_softmax(-1)
    t = torch.full(shape, 0.1, dtype=dtype)
    found, expected = (TEMPERED[name](x, value) for value in (t, float(t.flatten()[0])))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("num_categories", [2, 3, 40])  # short rows on a CPU have their own softmax
@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("name", LOGARITHMIC)
def test_logarithms_of_half_precision_are_in_float32(
    name: str, tensor: bool, num_categories: int, dtype: torch.dtype
) -> None:
    x = torch.randn(3, num_categories).log_softmax(-1).to(dtype)
    t = torch.tensor(0.5, dtype=dtype) if tensor else 0.5
    found = LOGARITHMIC[name](x, t)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, LOGARITHMIC[name](x.float(), 0.5))


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own, in jvp
@pytest.mark.parametrize(
    "sample",
    [
        lambda t: fn.igr_softmax(torch.tensor([0.0, -math.inf]), torch.ones(2), t),
        lambda t: fn.igr_softmax(torch.tensor([0.0, -math.inf]), torch.ones(2), t, delta=2.0),
        lambda t: fn.igr_softmax(torch.tensor([[0.0], [-math.inf]]), torch.ones(2, 1), t, dim=0),
        lambda t: fn.gumbel_softmax(torch.tensor([0.0, 1.0, -math.inf]), t),
        lambda t: fn.gumbel_softmax(torch.tensor([0.0, 1.0, -math.inf]), t, True),
        lambda t: fn.softmax_plus_plus(torch.tensor([0.0, -math.inf]), t),
        lambda t: fn.softmax_plus_plus(torch.tensor([0.0, -math.inf]), t, 0.5),
        lambda t: fn.log_softmax_plus_plus(torch.tensor([0.0, -math.inf]), t)[0],
        lambda t: fn.log_sharpen(torch.tensor([0.5, 0.5, 0.0]).log(), t)[:2],
        lambda t: fn.sharp_stick_breaking(torch.tensor([0.3, -math.inf]), t),
        lambda t: fn.sharp_stick_breaking_igr_softmax(
            torch.tensor([0.3, -math.inf]), torch.ones(2), t
        ),
    ],
)
def test_a_weight_of_zero_has_no_part_in_the_gradient_of_the_temperature(
    sample: Callable[[Tensor], Tensor],
) -> None:
    """By reverse and by forward mode; the same as without the category, as central differences have it."""
    weights = torch.tensor([1.0, 2.0, 4.0])

    def value(t: Tensor) -> Tensor:
        torch.manual_seed(0)
        z = sample(t)
        return (z.double().flatten() * weights[: z.numel()].double()).sum()

    t = torch.tensor(0.7, requires_grad=True)
    (grad,) = torch.autograd.grad(value(t), t)
    assert grad.isfinite()
    _, forward = torch.func.jvp(value, (t.detach(),), (torch.tensor(1.0),))
    torch.testing.assert_close(forward.float(), grad)
    torch.testing.assert_close(torch.func.grad(lambda t: value(t).float())(t.detach()), grad)


def test_samplers_are_found_at_the_top() -> None:
    for name in (
        "igr_softmax",
        "stick_breaking_igr_softmax",
        "sharp_stick_breaking_igr_softmax",
        "planar_igr_softmax",
        "gumbel_softmax",
    ):
        assert getattr(igr, name) is getattr(fn, name)
        assert name in igr.__all__
