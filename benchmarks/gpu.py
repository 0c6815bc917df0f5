"""What a GPU is asked: checks against float64 on the CPU, then bandwidth, stacks of runs, and table 1 whole.

python benchmarks/gpu.py                    on a CUDA device, every part
python benchmarks/gpu.py --device cpu --small     the same program in seconds, to see that it runs
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from igr.experiments.training.config import RunConfig
from igr.experiments.training.trainer import StackTrainer
from igr.functional import gaussian_kl, igr_softmax


def synchronise(device: torch.device) -> None:
    """Wait for what was launched, where launching does not wait by itself."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of `work`, after three calls that are not counted."""
    taken = []
    for turn in range(repeats + 3):
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        if turn >= 3:
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def check(device: torch.device) -> dict[str, float]:
    """Largest relative difference of sample, KL and gradients in float32 here from float64 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    loc, log_scale, noise = (
        torch.randn(500, 20, 9, dtype=torch.float64, generator=generator) for _ in range(3)
    )

    def everything(device: torch.device | str, dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(device, dtype, copy=True).requires_grad_() for x in (loc, log_scale)]
        z, kl = sample_and_kl(leaves[0], leaves[1].exp(), noise.to(device, dtype))
        (z[..., 0].sum() + kl.sum()).backward()
        return [x.detach().cpu().double() for x in (z, kl, leaves[0].grad, leaves[1].grad)]

    names = ("sample", "KL", "gradient of loc", "gradient of log scale")
    pairs = zip(everything(device, torch.float32), everything("cpu", torch.float64), strict=True)
    errors = {
        name: ((a - b).abs().max() / b.abs().max()).item()
        for name, (a, b) in zip(names, pairs, strict=True)
    }
    for name, error in errors.items():
        if error > 1e-5:  # some hundred roundings of float32
            raise SystemExit(f"check failed: {name} differs by {error:.1e}")
    return errors


def sample_and_kl(loc: Tensor, scale: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The operation that is measured."""
    return igr_softmax(loc, scale, 0.5, noise=noise), gaussian_kl(loc, scale, -0.75, 1.0)


def bandwidth(device: torch.device, elements: int, compiled: bool) -> dict[str, float]:
    """Sample and KL, forward and backward, in bytes that they cannot avoid, against a copy of as many elements."""
    rows = elements // 10
    loc, noise = (torch.randn(rows, 9, device=device) for _ in range(2))
    scale = torch.rand(rows, 9, device=device) + 0.5
    loc.requires_grad_()
    scale.requires_grad_()
    grad_z, grad_kl = torch.randn(rows, 10, device=device), torch.ones(rows, device=device)
    forward = torch.compile(sample_and_kl, fullgraph=True) if compiled else sample_and_kl

    def step() -> None:
        loc.grad = scale.grad = None
        torch.autograd.backward(forward(loc, scale, noise), (grad_z, grad_kl))

    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    copy = 8 * elements / seconds(lambda: target.copy_(source), device, 20)
    # Read loc, scale, noise; write z and KL; then read those three, z and their gradients; write two gradients.
    moved = 4 * rows * (9 * 3 + 10 + 1 + 9 * 3 + 10 * 2 + 1 + 9 * 2)
    ours = moved / seconds(step, device, 20)
    return {"copy GB/s": copy / 1e9, "sample and KL GB/s": ours / 1e9, "share": ours / copy}


def stacks(device: torch.device, count: int, steps: int) -> dict[str, float]:
    """A step of `count` stacked runs against as many steps of one run."""
    data = (torch.rand(100 * steps, 784) < 0.13).float()

    def per_epoch(runs: list[RunConfig]) -> float:
        trainer = StackTrainer(runs, data, device=device)
        return seconds(trainer.train_epoch, device, 3)

    def run(seed: int) -> RunConfig:
        return RunConfig(dataset="mnist", family="igr-i", temperature=0.1, seed=seed)

    stacked = per_epoch([run(seed) for seed in range(count)])
    single = per_epoch([run(0)])
    return {
        "stacked, ms a step": 1e3 * stacked / steps,
        "single, ms a step": 1e3 * single / steps,
        "times the throughput": count * single / stacked,
    }


def table1(device: torch.device, small: bool) -> dict[str, float]:
    """Minutes for table 1 whole, by the command that a user would give."""
    with tempfile.TemporaryDirectory() as folder:
        scale = "smoke" if small else "full"
        command = [
            "reproduce",
            "table1",
            "--scale",
            scale,
            "--device",
            str(device),
            "--out",
            folder,
        ]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "igr", *command], check=True)
        return {"minutes": (time.perf_counter() - start) / 60}


def main() -> None:
    """Run the parts that were asked for, print a table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes for a trial on a CPU")
    parser.add_argument(
        "--part", action="append", choices=("check", "bandwidth", "stacks", "table1")
    )
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("device: torch finds no CUDA device here; try --device cpu --small")
    small = chosen.small
    parts: dict[str, Callable[[], dict[str, float]]] = {
        "check": lambda: check(device),
        "bandwidth": lambda: bandwidth(device, 100_000 if small else 100_000_000, not small),
        "stacks": lambda: stacks(device, 3 if small else 50, 3 if small else 600),
        "table1": lambda: table1(device, small),
    }
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}")
    results = {}
    for part in chosen.part or parts:
        results[part] = parts[part]()
        for what, value in results[part].items():
            print(f"{part:10}  {what:24}  {value:.3g}", flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps({"device": name, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
