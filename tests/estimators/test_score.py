"""Baselines."""

from __future__ import annotations

import torch

from igr.estimators import RunningMean


def test_running_mean_and_leave_one_out() -> None:
    baseline = RunningMean(0.9, shape=(2,))
    first = torch.tensor([[[1.0, 3.0], [10.0, 30.0]]])
    assert (baseline(first) == 0).all(), "the first call knows nothing yet"
    torch.testing.assert_close(baseline(first)[0], torch.tensor([[2.0], [20.0]]))
    baseline.eval()
    baseline(100 * first)
    torch.testing.assert_close(baseline(first)[0], torch.tensor([[2.0], [20.0]]))
    assert set(baseline.state_dict()) == {"mean", "weight"}
