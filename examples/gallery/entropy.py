"""
# How close to one-hot samples are

Mean entropy of relaxed samples of ten equally probable categories: 0 is one-hot, log 10 is all alike. At one and the
same temperature IGR is the softer of the two, so a temperature is not to be carried over from one to the other.
"""

import matplotlib.pyplot as plt
import torch

import igr

torch.manual_seed(0)
temperatures = torch.logspace(-2, 1, 25)

figure, axes = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
for form, colour in ((igr.SoftmaxIGR, "C0"), (igr.GumbelSoftmax, "C1")):
    samples = [form.uniform(10, float(t)).sample((2000,)) for t in temperatures]
    entropy = [torch.special.entr(z).sum(-1).mean() for z in samples]
    axes.semilogx(temperatures, entropy, color=colour, label=form.__name__)
axes.axhline(torch.tensor(10.0).log(), color="grey", linestyle=":", label="log 10")
axes.set_xlabel("temperature")
axes.set_ylabel("mean entropy of a sample (nats)")
axes.legend()
