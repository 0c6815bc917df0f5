"""A mixture of experts on scikit-learn's digits: each image goes to one of four linear classifiers.

Relaxed gates in training and one expert an image when deployed. Writes mixture_of_experts.json.
"""

import json
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import igr

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16 - 0.3, dtype=torch.float32), torch.tensor(labels)


class Mixture(nn.Module):
    """A gate and its experts."""

    def __init__(self, make: type[igr.nn.Head], num_experts: int = 4) -> None:
        super().__init__()
        self.gate = make(64, num_categories=num_experts, temperature=0.5)
        self.sample = igr.nn.Sample()
        self.experts = nn.Linear(64, num_experts * 10)

    def forward(self, x: Tensor) -> Tensor:
        gates = self.sample(self.gate(x))  # (batch, 4), one-hot in evaluation
        return torch.einsum("bk,bkc->bc", gates, self.experts(x).unflatten(-1, (-1, 10)))


def run(make: type[igr.nn.Head], seed: int, num_steps: int = 400) -> dict[str, object]:
    """Train one, and report its accuracy on images not seen and how many each expert gets."""
    torch.manual_seed(seed)
    order = torch.randperm(len(x))
    train, test = order[:600], order[600:]
    model = Mixture(make)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-4)
    for _ in range(num_steps):
        loss = cross_entropy(model(x[train]), y[train])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    accuracy = (model(x[test]).argmax(-1) == y[test]).float().mean()
    load = model.gate(x[test]).mode.mean(0)
    shares = [round(share, 2) for share in load.tolist()]
    return {"seed": seed, "accuracy": round(accuracy.item(), 4), "load": shares}


if __name__ == "__main__":
    torch.set_num_threads(1)
    makes = [igr.nn.GumbelSoftmaxHead, igr.nn.SoftmaxIGRHead]
    record = {make.__name__: [run(make, seed) for seed in range(5)] for make in makes}
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
