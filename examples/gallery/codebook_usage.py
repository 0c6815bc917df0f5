"""
# Which codes a codebook uses

A codebook of 16 vectors learns to stand for points of eight clusters. Without a penalty some codes are hardly used;
with the diversity loss all are. Bars are the share of the points that choose each code.
"""

import matplotlib.pyplot as plt
import torch

import igr

torch.manual_seed(0)
centres = 3 * torch.randn(8, 2)
points = centres.repeat(20, 1) + 0.5 * torch.randn(160, 2)

figure, panels = plt.subplots(1, 2, figsize=(6.4, 3.6), layout="constrained", sharey=True)
for axes, weight in zip(panels, (0.0, 1.0), strict=True):
    head = igr.nn.SoftmaxIGRHead(2, num_categories=16, temperature=0.5)
    codebook = igr.nn.Codebook(None, 16, dim=2)
    optimizer = torch.optim.Adam([*head.parameters(), *codebook.parameters()], lr=0.05)
    for _ in range(60):
        q = head(points)
        loss = (codebook(q.straight_through()) - points).square().sum(-1).mean()
        optimizer.zero_grad()
        (loss + weight * codebook.diversity_loss(q.probs)).backward()
        optimizer.step()
    usage = codebook.usage(q.probs.detach())
    axes.bar(range(16), sorted(usage.tolist(), reverse=True))
    axes.set_title(
        f"diversity {weight:g}: perplexity {codebook.perplexity(q.probs):.1f}", fontsize=9
    )
    axes.set_xlabel("code, by its share")
    axes.set_ylabel("share")
