"""
# Samples by temperature

500 samples of three equally probable categories in each panel: as the temperature falls they go to the corners, and
how often each corner is chosen stays what it was.
"""

import matplotlib.pyplot as plt
import torch

import igr

torch.manual_seed(0)
forms = (igr.SoftmaxIGR, igr.SharpStickBreakingIGR, igr.GumbelSoftmax)
corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.866]])

figure, panels = plt.subplots(3, 3, figsize=(6.4, 6), layout="constrained")
for row, form in zip(panels, forms, strict=True):
    for axes, temperature in zip(row, (1.0, 0.5, 0.1), strict=True):
        z = form.uniform(3, temperature).sample((500,))
        axes.scatter(*(z @ corners).T, s=4, c=z.clamp(0, 1).numpy())  # its colour says which corner
        axes.fill(*corners.T, fill=False, edgecolor="grey")
        axes.set_axis_off()
        axes.set_aspect("equal")
        axes.set_title(f"{form.__name__}\ntemperature {temperature}", fontsize=9)
