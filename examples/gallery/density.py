"""
# Densities on the triangle

Log-density for one location, by scale and temperature. A larger scale and a lower temperature both push the mass to the
edges; how likely each corner is depends on location and scale alone.
"""

import matplotlib.pyplot as plt
import torch

import igr

side = torch.linspace(0.002, 0.998, 200)
first, second = torch.meshgrid(side, side, indexing="xy")
z = torch.stack([first, second, 1 - first - second], -1)
inside = z[..., 2] > 0.001
points = torch.where(inside[..., None], z, 1 / 3)

figure, panels = plt.subplots(2, 3, figsize=(6.4, 4.6), layout="constrained", sharex=True)
for row, temperature in zip(panels, (1.0, 0.4), strict=True):
    for axes, scale in zip(row, (0.5, 1.0, 2.0), strict=True):
        q = igr.SoftmaxIGR(torch.tensor([0.5, 0.0]), torch.full((2,), scale), temperature)
        density = q.log_prob(points).where(inside, torch.nan)
        axes.contourf(first, second, density, levels=torch.arange(-6.0, 5.0), extend="both")
        axes.set_title(f"scale {scale}, temperature {temperature}", fontsize=8)
        axes.set_aspect("equal")
        axes.set_xlabel("$z_1$")
        axes.set_ylabel("$z_2$")
