"""
# A prior of broken sticks

The location says how much is broken off the stick at a time, and with it how many categories a countable relaxation
uses: where it is low, pieces are small, and probabilities fall off slowly.
"""

import matplotlib.pyplot as plt
import torch

import igr

figure, (left, right) = plt.subplots(1, 2, figsize=(6.4, 3.4), layout="constrained")
torch.manual_seed(0)
for loc in (0.0, -1.5, -3.0):
    parameters = igr.nn.CountableParameters(initial=64, loc=loc)
    q = igr.CountableIGR(parameters, temperature=0.3)
    left.plot(q.discrete().probs.detach()[:40], label=f"loc {loc}")
    q.sample((5000,))
    right.hist(q.num_used, bins=range(0, 100, 4), density=True, alpha=0.6, label=f"loc {loc}")
left.set_xlabel("category")
left.set_ylabel("probability")
right.set_xlabel("breaks until 99% is gone")
right.set_ylabel("density")
left.legend()
