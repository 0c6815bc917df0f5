"""
# Descent through relaxed and hard samples

Four estimators descend the same quadratic loss from the same start; drawn is the path of the probabilities. What counts
is the loss on the corners, and the true gradient ends in the best of them. Relaxed samples have less of it inside the
triangle and stay there, and so do one-hot samples with the gradient of relaxed ones. `ReinMax`, exact to second order,
finds the corner.
"""

import matplotlib.pyplot as plt
import torch

import igr
from igr import estimators as est

target = torch.tensor([0.5, 0.3, 0.2])
corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.866]])

figure, axes = plt.subplots(figsize=(5.2, 4.4), layout="constrained")
axes.fill(*corners.T, fill=False, edgecolor="grey")
for way in (est.Enumerate(), est.Pathwise(), est.RelaxedStraightThrough(), est.ReinMax()):
    torch.manual_seed(0)
    logits, path = torch.tensor([-2.0, 0.0, 1.0], requires_grad=True), []
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(120):
        q = igr.GumbelSoftmax(0.5, logits=logits.expand(100, 3))
        path.append(q.probs[0].detach())
        optimizer.zero_grad()
        way(q, lambda b: (b - target).square().sum(-1)).mean().backward()
        optimizer.step()
    axes.plot(*(torch.stack(path) @ corners).T, ".-", markersize=4, label=type(way).__name__)
axes.annotate("best", corners[0], xytext=(-4, 8), textcoords="offset points", ha="right")
axes.set_axis_off()
axes.set_title("Probabilities over 120 steps of Adam", fontsize=9)
axes.legend(loc="upper left", fontsize=8)
