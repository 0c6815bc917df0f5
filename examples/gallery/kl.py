"""
# A KL divergence in closed form

Between two IGR it is that of their Gaussians, exact and without noise. Of two Gumbel-Softmax with the same
probabilities it has to be estimated by samples, each time anew: bars are the middle 90% of 2,000 estimates.
"""

import matplotlib.pyplot as plt
import torch

import igr

torch.manual_seed(0)
logits = torch.randn(10)
draws = (1, 4, 16, 64)
pairs = {
    "SoftmaxIGR": [igr.SoftmaxIGR.from_logits(x, 0.5) for x in (logits, torch.zeros(10))],
    "GumbelSoftmax": [igr.GumbelSoftmax(0.5, logits=x) for x in (logits, torch.zeros(10))],
}

figure, panels = plt.subplots(1, 2, figsize=(6.4, 3.6), layout="constrained", sharex=True)
for axes, (name, (q, p)) in zip(panels, pairs.items(), strict=True):
    many = q.expand((2000,))
    estimates = torch.stack([igr.monte_carlo_kl(many, p, n) for n in draws])
    low, middle, high = estimates.quantile(torch.tensor([0.05, 0.5, 0.95]), 1)
    axes.errorbar(
        draws, middle, [middle - low, high - middle], fmt="o", capsize=4, label="estimates"
    )
    if name == "SoftmaxIGR":
        axes.axhline(igr.kl_divergence(q, p), color="C1", label="closed form")
    axes.set_xscale("log")
    axes.set_xlabel("samples of an estimate")
    axes.set_ylabel("KL divergence (nats)")
    axes.set_title(name, fontsize=9)
    axes.legend()
