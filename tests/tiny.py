"""The smallest scale at which a cell of the experiments does everything."""

from __future__ import annotations

from igr.experiments.paper.specs import Scale

TINY = Scale(
    "tiny",
    "",
    temperatures=(0.1, 1.0),
    lrs=(1e-3, 1e-2),
    seeds=2,
    epochs=3,
    train_images=120,
    held_out=20,
    test_images=10,
    choice_samples=5,
    samples=10,
    stand_in="digits",
)
