"""The paper's experiments: data sets, models, training, tables and figures; the command ``igr``."""

from __future__ import annotations

from typing import Any

__all__ = ["results"]


def results() -> Any:
    """The results that come with igr, ours beside the paper's: a `pandas.DataFrame`, or without pandas a list of dicts.

    One row for each row of a table and data set of the paper that has been run in full. Columns ending in ``_sd`` are
    standard deviations over the seeds; bounds and estimates are in nats per image, ``seconds_per_epoch`` in seconds.

    >>> import igr.experiments
    >>> table = igr.experiments.results()
    """
    from igr.experiments.paper import results as module

    return module.results()
