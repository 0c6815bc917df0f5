"""
# Many categories

Milliseconds for a sample and its gradient, 64 rows of K categories, on the machine that built this page. With few
categories both take what calling them takes; with many, Gaussian noise is cheaper than the Gumbel noise of
`F.gumbel_softmax`, and fewer passes over memory count.
"""

import time

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

import igr


def milliseconds(sample, *parameters):
    times = []
    for _ in range(7):
        start = time.perf_counter()
        torch.autograd.grad(sample(*parameters).square().sum(), parameters)
        times.append(1000 * (time.perf_counter() - start))
    return min(times)


sizes = (10, 100, 1000, 10_000, 30_000)
figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
for sample, names in ((igr.igr_softmax, ("loc", "scale")), (F.gumbel_softmax, ("logits",))):
    given = [[torch.ones(64, K, requires_grad=True) for _ in names] for K in sizes]
    label = f"{sample.__name__}({', '.join(names)})"
    axes.loglog(sizes, [milliseconds(sample, *each) for each in given], "o-", label=label)
axes.set_xlabel("K")
axes.set_ylabel("milliseconds, forward and backward")
axes.legend()
