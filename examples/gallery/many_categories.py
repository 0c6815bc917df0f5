"""
# Many categories

Milliseconds of a processor for a sample and its gradient, 64 rows of K categories, where this page was built. With few
categories both take what calling them takes; with many, Gaussian noise and a softmax in one piece cost less than the
Gumbel noise of `F.gumbel_softmax`.
"""

import time

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

import igr


def milliseconds(sample, *parameters):
    times = []
    for _ in range(15):
        start = time.process_time()
        torch.autograd.grad(sample(*parameters).square().sum(), parameters)
        times.append(1000 * (time.process_time() - start))
    return min(times)


sizes = (10, 100, 1000, 10_000)
figure, axes = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
for sample, names in ((igr.igr_softmax, ("loc", "scale")), (F.gumbel_softmax, ("logits",))):
    given = [[torch.ones(64, K, requires_grad=True) for _ in names] for K in sizes]
    label = f"{sample.__name__}({', '.join(names)})"
    axes.loglog(sizes, [milliseconds(sample, *each) for each in given], "o-", label=label)
axes.set_xlabel("K")
axes.set_ylabel("milliseconds")
axes.legend()
