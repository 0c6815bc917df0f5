"""What runs the public operations besides eager mode, and a page that says which of them works.

``python tests/drivers.py`` runs all and writes the table of ``docs/compile.md``; `test_drivers.py` compares the page.
"""

from __future__ import annotations

import io
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import kl_divergence
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx

import igr
from igr import functional as fn

# What an operation makes of x ``(batch, n)`` and a temperature, a number or a tensor.
Operation = Callable[[Tensor, "float | Tensor"], Tensor]


def _scale(x: Tensor) -> Tensor:
    return (0.3 * x).exp()


def _some(x: Tensor, more: int = 1) -> Tensor:
    """A mask for n + more categories that leaves out the second."""
    return torch.arange(x.shape[-1] + more, device=x.device) != 1


def _log_w(x: Tensor) -> Tensor:
    return x.log_softmax(-1)


FUNCTIONS: dict[str, Operation] = {
    "torch.nn.functional.gumbel_softmax": lambda x, t: torch.nn.functional.gumbel_softmax(x, t),  # type: ignore[arg-type]
    "igr_softmax": lambda x, t: fn.igr_softmax(x, _scale(x), t),
    "igr_softmax, hard": lambda x, t: fn.igr_softmax(x, _scale(x), t, True),
    "igr_softmax, delta": lambda x, t: fn.igr_softmax(x, _scale(x), t, delta=t),
    "igr_softmax, allowed": lambda x, t: fn.igr_softmax(x, _scale(x), t, allowed=_some(x)),
    "igr_softmax, dim=0": lambda x, t: fn.igr_softmax(x, _scale(x), t, dim=0),
    "gumbel_softmax": lambda x, t: fn.gumbel_softmax(x, t),
    "gumbel_softmax, hard": lambda x, t: fn.gumbel_softmax(x, t, True),
    "gumbel_softmax, allowed": lambda x, t: fn.gumbel_softmax(x, t, allowed=_some(x, 0)),
    "stick_breaking_igr_softmax": lambda x, t: fn.stick_breaking_igr_softmax(x, _scale(x), t),
    "sharp_stick_breaking_igr_softmax": lambda x, t: fn.sharp_stick_breaking_igr_softmax(
        x, _scale(x), t
    ),
    "planar_igr_softmax": lambda x, t: fn.planar_igr_softmax(x, _scale(x), lambda y: 2 * y, t),
    "softmax_plus_plus and its inverse": lambda x, t: fn.log_softmax_plus_plus_inverse(
        fn.log_softmax_plus_plus(x, t), t
    ),
    "log_stick_breaking and its inverse": lambda x, t: fn.log_stick_breaking_inverse(
        fn.log_stick_breaking(x)
    ),
    "log_sharpen and its inverse": lambda x, t: fn.log_sharpen_inverse(
        fn.log_sharpen(_log_w(x), t), t
    ),
    "log_vertex_interpolation and its inverse": lambda x, t: fn.log_vertex_interpolation_inverse(
        fn.log_vertex_interpolation(_log_w(x), t), t
    ),
    "planar and its inverse": lambda x, t: fn.planar_inverse(
        fn.planar(x, x[0], x[0] + 1, x[:, 0])[0], x[0], x[0] + 1, x[:, 0]
    ),
    "gaussian_kl": lambda x, t: fn.gaussian_kl(x, _scale(x), 0.1, t),
    "gaussian_log_prob": lambda x, t: fn.gaussian_log_prob(x, 0.0, t),
    "exp_concrete_log_prob": lambda x, t: fn.exp_concrete_log_prob(x, 0.0, t),
}

_FAMILIES: dict[str, Callable[[Tensor, float | Tensor], igr.Relaxation]] = {
    "SoftmaxIGR": lambda x, t: igr.SoftmaxIGR(x, _scale(x), t),
    "SoftmaxIGR, allowed": lambda x, t: igr.SoftmaxIGR(x, _scale(x), t, allowed=_some(x)),
    "StickBreakingIGR": lambda x, t: igr.StickBreakingIGR(x, _scale(x), t),
    "SharpStickBreakingIGR": lambda x, t: igr.SharpStickBreakingIGR(x, _scale(x), t),
    "PlanarIGR": lambda x, t: igr.PlanarIGR(x, _scale(x), t, [igr.Planar(x[0], x[0] + 1, x[0, 0])]),
    "GumbelSoftmax": lambda x, t: igr.GumbelSoftmax(t, logits=x),
}
_METHODS: dict[str, Callable[[igr.Relaxation], Tensor]] = {
    "rsample": lambda q: q.rsample(),
    "log_prob": lambda q: q.log_prob(q.rsample().detach()),
    "monte_carlo_kl": lambda q: igr.monte_carlo_kl(q, q.expand(q.batch_shape)),
    "discrete": lambda q: q.discrete().probs,
}


def _of(family: str, method: str) -> Operation:
    make, call = _FAMILIES[family], _METHODS[method]
    return lambda x, t: call(make(x, t))


DISTRIBUTIONS: dict[str, Operation] = {
    f"{family}: {method}": _of(family, method)
    for family in _FAMILIES
    for method in _METHODS
    if method != "discrete" or family in ("SoftmaxIGR", "SoftmaxIGR, allowed", "GumbelSoftmax")
}
DISTRIBUTIONS["SoftmaxIGR: kl_divergence"] = lambda x, t: kl_divergence(
    igr.SoftmaxIGR(x, _scale(x), t), igr.SoftmaxIGR(torch.zeros_like(x), torch.ones_like(x), 0.7)
)
for _family in (igr.SoftmaxIGR, igr.SharpStickBreakingIGR):
    DISTRIBUTIONS[f"{_family.__name__}: from_logits"] = lambda x, t, f=_family: (
        f.from_logits(x, t).loc
    )
OPERATIONS = FUNCTIONS | DISTRIBUTIONS

# Drivers

_ON_NUMBERS_AND_TENSORS = (False, True)


class _Module(torch.nn.Module):
    def __init__(self, operation: Operation, learned: bool) -> None:
        super().__init__()
        self.operation = operation
        self.temperature = torch.nn.Parameter(torch.tensor(0.5)) if learned else 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(x, self.temperature)


def _compile(f: Operation) -> None:
    """One graph, batch, K and temperature changing from call to call; the gradient as well."""
    for learned in _ON_NUMBERS_AND_TENSORS:
        torch.compiler.reset()
        compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
        for shape, number in (((7, 4), 0.5), ((8, 4), 0.4), ((9, 6), 0.3), ((5, 7), 0.2)):
            x = torch.randn(shape, requires_grad=True)
            t = torch.tensor(number, requires_grad=True) if learned else number
            found = compiled(x, t)
            assert found.shape == f(x, t).shape
            if found.requires_grad:
                found.sum().backward()
    torch.compiler.reset()


def _export(f: Operation, strict: bool) -> None:
    for learned in _ON_NUMBERS_AND_TENSORS:
        torch.compiler.reset()
        shapes = ({0: Dim("batch", min=2, max=1000)},)
        program = torch.export.export(
            _Module(f, learned), (torch.randn(7, 4),), dynamic_shapes=shapes, strict=strict
        )
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        run = torch.export.load(file).module()
        for n in (2, 7, 11):
            assert run(torch.randn(n, 4)).shape == f(torch.randn(n, 4), 0.5).shape


def _trace(f: Operation) -> None:
    for learned in _ON_NUMBERS_AND_TENSORS:
        traced = torch.jit.trace(_Module(f, learned), (torch.randn(7, 4),), check_trace=False)
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        run = torch.jit.load(file)
        for n in (2, 7, 11):
            assert run(torch.randn(n, 4)).shape == f(torch.randn(n, 4), 0.5).shape


def _fake(f: Operation) -> None:
    """Under fake tensors and `make_fx`, and on the meta device."""
    for learned in _ON_NUMBERS_AND_TENSORS:
        with torch._subclasses.FakeTensorMode():
            f(torch.randn(7, 4, requires_grad=True), torch.tensor(0.5) if learned else 0.5)
        x = torch.randn(7, 4)
        if learned:
            make_fx(lambda x, t: f(x, t))(x, torch.tensor(0.5))
        else:
            make_fx(lambda x: f(x, 0.5))(x)
        f(x.to("meta"), torch.tensor(0.5, device="meta") if learned else 0.5)


def _vmap(f: Operation) -> None:
    """Over a batch of inputs and temperatures, and the gradients for each."""
    x, t = torch.randn(3, 7, 4), torch.tensor([0.5, 0.4, 0.3])
    gradient = torch.func.grad(lambda x, t: f(x, t).sum())
    for g in (f, gradient):
        torch.func.vmap(g, randomness="different")(x, t)
        torch.func.vmap(lambda x, g=g: g(x, 0.5), randomness="different")(x)


DRIVERS: dict[str, Callable[[Operation], None]] = {
    "compile": _compile,
    "export": lambda f: _export(f, strict=False),
    "export, strict": lambda f: _export(f, strict=True),
    "trace": _trace,
    "fake tensors": _fake,
    "vmap": _vmap,
}


def works(operation: str, driver: str) -> bool:
    """Whether a driver runs an operation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            DRIVERS[driver](OPERATIONS[operation])
        except Exception as error:  # whatever it is, it does not work
            print(f"{operation}, {driver}: {' '.join(str(error).split())[:200]}", file=sys.stderr)
            return False
    return True


# The page

PAGE = Path(__file__).parent.parent / "docs" / "compile.md"


def rows(text: str) -> dict[str, dict[str, bool]]:
    """The table of the page: for each operation, whether each driver runs it."""
    found = {}
    for line in re.findall(r"^\| (`.*) \|$", text, flags=re.MULTILINE):
        name, *cells = line.split(" | ")
        found[name.replace("`", "")] = dict(zip(DRIVERS, (c == "yes" for c in cells), strict=True))
    return found


def main() -> None:
    """Run everything, or the operations named, and write the table."""
    torch.set_num_threads(1)
    for name in sys.argv[1:] or OPERATIONS:
        _write(name, {driver: works(name, driver) for driver in DRIVERS})


def _write(name: str, found: dict[str, bool]) -> None:
    """Put a row into the page."""
    text = PAGE.read_text()
    table = rows(text) | {name: found}
    lines = [f"| | {' | '.join(DRIVERS)} |", "| --- |" + " --- |" * len(DRIVERS)]
    for operation in filter(table.__contains__, OPERATIONS):
        cells = ("yes" if table[operation][driver] else "**no**" for driver in DRIVERS)
        shown = re.sub(r"^[\w.]+", r"`\g<0>`", operation)  # names are not broken; the rest may be
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    PAGE.write_text(text.split("| | ")[0].rstrip() + "\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
