"""
# Draws given their category

Relaxed samples that are known to stand for a certain category, drawn exactly and with a gradient: control variates
are made of them. Each lies in the part of the triangle where its category is the largest.
"""

import matplotlib.pyplot as plt
import torch

import igr

torch.manual_seed(0)
q = igr.SoftmaxIGR(torch.tensor([0.7, -0.5]), torch.tensor([1.0, 0.6]), temperature=0.8)
corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.866]])

figure, axes = plt.subplots(figsize=(5.2, 4.4), layout="constrained")
axes.fill(*corners.T, fill=False, edgecolor="grey")
for category, onehot in enumerate(torch.eye(3)):
    z = q.conditional_rsample(onehot.expand(400, 3))
    axes.scatter(*(z @ corners).T, s=6, label=f"category {category}: {q.probs[category]:.2f}")
centre = corners.mean(0)
for middle in (corners + corners.roll(1, 0)) / 2:
    axes.plot(*torch.stack([centre, middle]).T, color="grey", linestyle=":")
axes.set_axis_off()
axes.set_title("Draws given their category, and its probability", fontsize=9)
axes.legend()
