"""
# Bias and noise of gradient estimators

Six variables of three categories, and a quadratic loss of their one-hot vectors. A good estimator is at the lower
left. `Reinforce` is right on average and noisy; relaxed samples are quieter and wrong; control variates take the noise
from the former, for more evaluations of the loss. With 10,000 draws, a bias of a hundredth of the noise is none.
"""

import matplotlib.pyplot as plt
import torch

import igr
from igr import estimators as est

torch.manual_seed(0)
weights, values = torch.randn(6), torch.randn(6, 3)
logits = torch.zeros(6, 3, requires_grad=True)


def loss(b):
    return ((b * values).sum(-1) @ weights).square()


def gradients(estimator, draws):
    q = igr.GumbelSoftmax(0.5, logits=logits.expand(draws, -1, -1))
    return torch.autograd.grad(estimator(q, loss).sum(), q.logits)[0]


exact = gradients(est.Enumerate(), 1)[0]
figure, axes = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
for estimator in (est.Pathwise(), est.RelaxedStraightThrough(), est.StraightThrough(), est.Reinforce(), est.ReinMax(),
                  est.Rebar(), est.DoubleControlVariate(4)):  # fmt: skip
    each = gradients(estimator, 10_000)
    bias, noise = (each.mean(0) - exact).norm(), each.std(0).norm()
    axes.loglog(bias / exact.norm(), noise / exact.norm(), "o")
    place = (bias / exact.norm(), 1.04 * noise / exact.norm())
    axes.annotate(type(estimator).__name__, place, ha="center")
axes.margins(x=0.3, y=0.1)
axes.set_xlabel("bias, relative to the gradient")
axes.set_ylabel("noise of one draw, likewise")
