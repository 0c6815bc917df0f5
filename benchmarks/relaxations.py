"""SoftmaxIGR and the Gumbel-Softmax with the same probabilities: bias and noise of gradients, and finite densities.

`python benchmarks/relaxations.py` writes `relaxations.json`, from which the documentation quotes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import RelaxedOneHotCategorical

import igr

RECORD = Path(__file__).with_suffix(".json")
K, PROBLEMS, DRAWS = 10, 50, 4000
TEMPERATURES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.5)


def objectives() -> dict[str, Callable[[Tensor], Tensor]]:
    """Of z in (..., problems, K): a network of 10 tanh units, and the square of a linear form; one for each problem."""
    w1, w2, w = torch.randn(PROBLEMS, K, 10), torch.randn(PROBLEMS, 10), torch.randn(PROBLEMS, K)
    return {
        "network": lambda z: ((z.unsqueeze(-2) @ w1).squeeze(-2).tanh() * w2).sum(-1),
        "quadratic": lambda z: ((z * w).sum(-1) - 0.4).square(),
    }


def draws(
    family: str, logits: Tensor, temperature: float
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Relaxed samples, and what makes gradients in the logits of gradients in the samples."""
    if family == "GumbelSoftmax":
        leaf = logits.expand(DRAWS, -1, -1).clone().requires_grad_()
        z = igr.GumbelSoftmax(temperature, logits=leaf).rsample()
        return z, lambda g: torch.autograd.grad(z, leaf, g)[0]
    solve = lambda x: igr.SoftmaxIGR.from_logits(x, temperature).loc  # noqa: E731
    loc = solve(logits)
    jacobian = torch.stack([torch.autograd.functional.jacobian(solve, x) for x in logits])
    leaf = loc.expand(DRAWS, -1, -1).clone().requires_grad_()
    z = igr.SoftmaxIGR(leaf, torch.ones_like(leaf), temperature).rsample()
    return z, lambda g: (torch.autograd.grad(z, leaf, g)[0].unsqueeze(-2) @ jacobian).squeeze(-2)


def gradients() -> list[dict[str, object]]:
    """Bias and standard deviation of one pathwise gradient in the logits, over the exact one's length.

    The median over problems.
    """
    rows: list[dict[str, object]] = []
    logits = torch.randn(PROBLEMS, K)
    for name, f in objectives().items():
        vertices = f(torch.eye(K).unsqueeze(1).expand(-1, PROBLEMS, -1)).T  # (problems, K)
        probs = logits.softmax(-1)
        exact = probs * (vertices - (probs * vertices).sum(-1, keepdim=True))
        length = exact.norm(dim=-1)
        for family in ("SoftmaxIGR", "GumbelSoftmax"):
            for temperature in TEMPERATURES:
                z, pull = draws(family, logits, temperature)
                point = z.detach().requires_grad_()
                each = pull(torch.autograd.grad(f(point).sum(), point)[0])
                noise2 = each.var(0).sum(-1)
                # The mean of so many draws is off by their noise, whose expected square is taken out.
                bias2 = (each.mean(0) - exact).square().sum(-1) - noise2 / DRAWS
                rows.append(
                    {
                        "objective": name,
                        "family": family,
                        "temperature": temperature,
                        "bias": (bias2.clamp_min(0).sqrt() / length).median().item(),
                        "noise": (noise2.sqrt() / length).median().item(),
                    }
                )
    return rows


def finite() -> list[dict[str, object]]:
    """Share of 100,000 samples of a uniform variable of 10 categories whose log-density is not a finite number."""
    rows: list[dict[str, object]] = []
    logits = torch.zeros(K, dtype=torch.float32)
    for temperature in (0.5, 0.2, 0.1, 0.05, 0.02, 0.01):
        rival = RelaxedOneHotCategorical(
            torch.tensor(temperature), logits=logits, validate_args=False
        )
        found = {
            "torch": rival.log_prob(rival.sample((100_000,))),
            "GumbelSoftmax": igr.GumbelSoftmax(temperature, logits=logits),
            "SoftmaxIGR": igr.SoftmaxIGR.uniform(K, temperature, dtype=torch.float32),
        }
        rows.append({"temperature": temperature})
        for name, q in found.items():
            log_prob = q if isinstance(q, Tensor) else q.rsample_and_log_prob((100_000,))[1]
            rows[-1][name] = (~log_prob.isfinite()).double().mean().item()
    return rows


def main() -> None:
    """Measure both and write the record."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    record = {"version": igr.__version__, "torch": torch.__version__}
    record |= {"gradients": gradients(), "finite": finite()}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
