"""
# A Poisson distribution by broken sticks

A relaxation of the counts 0, 1, 2, ... without an end is brought to Poisson(6) by the cross entropy of its relaxed
samples. Those spread over neighbours, so the counts behind them come out a little more peaked than the target.
"""

import matplotlib.pyplot as plt
import torch

import igr

torch.manual_seed(0)
parameters = igr.nn.CountableParameters(initial=32, loc=-2.0)
optimizer = torch.optim.Adam(parameters.parameters(), lr=0.05)
target = torch.distributions.Poisson(6.0).log_prob(torch.arange(20.0)).exp()

figure, axes = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
axes.bar(range(20), target.tolist(), color="lightgrey", label="Poisson(6)")
for step in range(301):
    q = igr.CountableIGR(parameters, temperature=0.3)
    if step in (0, 50, 300):
        axes.plot(q.discrete().probs.detach()[:20], "o-", label=f"after {step} steps")
    mean = q.rsample((200,)).mean(0)[:20]
    optimizer.zero_grad()
    (-target[: len(mean)] @ (mean + 1e-9).log()).backward()
    optimizer.step()
axes.set_xticks(range(0, 20, 2))
axes.set_xlabel("count")
axes.set_ylabel("probability")
axes.legend()
