"""What the functions say to arguments that do not fit, and that they take what `torch.nn.functional` takes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

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
    with pytest.raises(ValueError, match=r"scale: expected a tensor, got 1\.0"):
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
    for bad, message in ((np.int64(-1), "got -1"), (np.ones(2), "got ndarray"), ("0.5", "got str")):
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
