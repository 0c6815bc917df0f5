"""
# Exact probabilities and counted ones

The probabilities of the categories behind a relaxation come from a quadrature that is right to rounding with 64 nodes;
counting hard samples gains one digit for every hundredfold number of draws.
"""

import matplotlib.pyplot as plt
import torch

import igr

torch.manual_seed(0)
q = igr.SoftmaxIGR(torch.randn(9, dtype=torch.float64), torch.rand(9).double() + 0.5, 0.3)
exact = q.discrete(num_nodes=512).probs
nodes = (16, 24, 32, 48, 64, 128)
draws = torch.logspace(1, 6, 12).long()

figure, axes = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
quadrature = [(q.discrete(num_nodes=n).probs - exact).abs().max() for n in nodes]
axes.loglog(nodes, quadrature, "o-", label="discrete(): nodes of the quadrature")
counted = [(q.hard(q.sample((n,))).mean(0) - exact).abs().max() for n in draws]
axes.loglog(draws, counted, "o-", label="hard(sample()): draws counted")
axes.set_xlabel("nodes, or draws")
axes.set_ylabel("largest error of a probability")
axes.legend()
