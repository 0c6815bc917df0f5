"""Feature selection on scikit-learn's breast cancer data: five of thirty features, chosen by gradient descent.

A linear classifier reads five choices, each a variable of thirty categories. Writes feature_selection.json.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import igr

table, labels = load_breast_cancer(return_X_y=True)
x, y = torch.tensor(table, dtype=torch.float32), torch.tensor(labels, dtype=torch.float32)
x = (x - x.mean(0)) / x.std(0)


def gumbel(logits: Tensor, temperature: float | Tensor) -> igr.Relaxation:
    """As `igr.SoftmaxIGR.from_logits` has its arguments."""
    return igr.GumbelSoftmax(temperature, logits=logits)


def run(make: Callable[..., igr.Relaxation], seed: int, num_steps: int = 100) -> dict[str, object]:
    """Choose features and report the accuracy on cases that were not seen."""
    torch.manual_seed(seed)
    order = torch.randperm(len(x))
    train, test = order[:300], order[300:]
    logits = nn.Parameter(0.01 * torch.randn(5, 30))
    classifier = nn.Linear(5, 1)
    temperature = igr.nn.ExponentialTemperature(1.0, 0.1, num_steps)
    optimizer = torch.optim.Adam([logits, *classifier.parameters()], lr=0.1)

    def log_odds(x: Tensor, choices: Tensor) -> Tensor:
        return classifier(x @ choices.mT).flatten()

    for _ in range(num_steps):
        choices = make(logits, temperature.temperature).rsample()  # (5, 30)
        loss = binary_cross_entropy_with_logits(log_odds(x[train], choices), y[train])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        temperature.step()
    q = make(logits.detach(), 0.1)
    right = (log_odds(x[test], q.mode) > 0) == (y[test] > 0)
    features = sorted(set(q.mode.argmax(-1).tolist()))
    sure = round(q.probs.amax(-1).mean().item(), 3)
    accuracy = round(right.float().mean().item(), 4)
    return {"seed": seed, "accuracy": accuracy, "features": features, "largest_probability": sure}


if __name__ == "__main__":
    torch.set_num_threads(1)
    makes = {"GumbelSoftmax": gumbel, "SoftmaxIGR": igr.SoftmaxIGR.from_logits}
    record = {name: [run(make, seed) for seed in range(5)] for name, make in makes.items()}
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
