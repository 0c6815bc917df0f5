"""
# What a planar flow does

A grid of noise and where the softmax++ takes it, without a planar flow (above) and with one (below): the flow bends
what a location and scales leave straight.
"""

import matplotlib.pyplot as plt
import torch

import igr

line, lines = torch.linspace(-1.5, 1.5, 100), torch.linspace(-1.5, 1.5, 9)
across = torch.stack([line.expand(9, -1), lines[:, None].expand(-1, 100)], -1)
grid = torch.cat([across, across.flip(-1)])  # 18 lines of 100 points
flow = igr.Planar(torch.tensor([-0.5, 2.0]), torch.tensor([1.5, 1.0]), torch.tensor(0.5))
corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.866]])

figure, panels = plt.subplots(2, 2, figsize=(6.4, 5.6), layout="constrained")
for row, points, name in zip(panels, (grid, flow(grid)), ("noise", "through a flow"), strict=True):
    on_triangle = igr.SoftmaxPlusPlus(1.0)(points) @ corners
    for axes, places in zip(row, (points, on_triangle), strict=True):
        for i, curve in enumerate(places):
            axes.plot(*curve.T, color="C0" if i < 9 else "C1", linewidth=0.8)
        axes.set_aspect("equal")
    row[0].set_title(name, fontsize=9)
    row[0].set_xlabel("$y_1$")
    row[0].set_ylabel("$y_2$")
    row[1].fill(*corners.T, fill=False, edgecolor="grey")
    row[1].set_title("then the softmax++", fontsize=9)
    row[1].set_axis_off()
