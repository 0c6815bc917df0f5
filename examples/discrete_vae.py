"""A discrete variational autoencoder of scikit-learn's digits: eight variables of ten categories, recorded beside."""

import json
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import igr

x = (torch.tensor(load_digits().data, dtype=torch.float32) > 7).float()


def run(make: type[igr.nn.Head], seed: int, num_steps: int = 1500) -> dict[str, float]:
    """Train one, and report the bound on images that it has not seen and the nats that its code carries."""
    torch.manual_seed(seed)
    order = torch.randperm(len(x))
    train, test = x[order[:1400]], x[order[1400:]]
    temperature = igr.nn.ExponentialTemperature(1.0, 0.5, num_steps)
    head = make(128, num_variables=8, num_categories=10, temperature=temperature)
    encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), head)
    prior, sample = head.prior(), igr.nn.Sample(random=True)  # hard samples in evaluation
    decoder = nn.Sequential(nn.Flatten(), nn.Linear(80, 128), nn.ReLU(), nn.Linear(128, 64))
    model, warmup = (
        nn.ModuleList([encoder, prior, sample, decoder]),
        igr.nn.KLWarmup(num_steps // 5),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)

    def log_likelihood(x: Tensor, q: igr.Relaxation) -> Tensor:
        return -binary_cross_entropy_with_logits(decoder(sample(q)), x, reduction="none").sum(-1)

    for _ in range(num_steps):
        batch = train[torch.randint(len(train), (200,))]
        q = encoder(batch)
        kl = igr.kl_divergence(q, prior()).sum(-1)
        loss = -igr.elbo(log_likelihood(batch, q), warmup.weight * kl).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        warmup.step()
        temperature.step()
    model.eval()
    with torch.no_grad():  # the bound of the discrete model, over 20 codes of each image
        q = encoder(test)
        kl = igr.kl_divergence(q, torch.distributions.Categorical(torch.ones(10))).sum(-1)
        bound = torch.stack([igr.elbo(log_likelihood(test, q), kl) for _ in range(20)]).mean()
    return {"seed": seed, "bound": round(bound.item(), 2), "nats": round(kl.mean().item(), 2)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    makes = [igr.nn.GumbelSoftmaxHead, igr.nn.SoftmaxIGRHead]
    record = {make.__name__: [run(make, seed) for seed in range(5)] for make in makes}
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
