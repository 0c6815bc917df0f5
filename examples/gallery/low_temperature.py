"""
# Log-densities at low temperatures

Share of 10,000 draws whose log-density, or a gradient through it, is NaN or infinite: torch's
`RelaxedOneHotCategorical` fails below a temperature of about 0.1, in float32 with ten categories, and igr does not.
"""

import matplotlib.pyplot as plt
import torch
from torch.distributions import RelaxedOneHotCategorical

import igr

torch.manual_seed(0)
temperatures = torch.logspace(-3, 0, 25)


def failing(temperature, theirs):
    logits = torch.zeros(10_000, 10, requires_grad=True)
    if theirs:
        q = RelaxedOneHotCategorical(temperature, logits=logits, validate_args=False)
        log_prob = q.log_prob(q.rsample())
    else:
        log_prob = igr.GumbelSoftmax(temperature, logits=logits).rsample_and_log_prob()[1]
    (gradient,) = torch.autograd.grad(log_prob.sum(), logits)
    return 1 - (log_prob.isfinite() & gradient.isfinite().all(-1)).double().mean()


figure, axes = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
for theirs, label in ((True, "RelaxedOneHotCategorical"), (False, "igr.GumbelSoftmax")):
    shares = [failing(t, theirs) for t in temperatures]
    axes.semilogx(temperatures, shares, color="C1" if theirs else "C0", label=label)
axes.set_xlabel("temperature")
axes.set_ylabel("share of draws that fail")
axes.legend(loc="center left")
