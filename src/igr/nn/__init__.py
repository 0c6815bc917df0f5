"""Modules: heads that turn features into a distribution, priors, samples, codebooks, flows, schedules."""

from igr.countable import CountableParameters
from igr.nn.codebook import Codebook
from igr.nn.flows import PlanarFlow
from igr.nn.heads import (
    GumbelSoftmaxHead,
    Head,
    PlanarIGRHead,
    SharpStickBreakingIGRHead,
    SoftmaxIGRHead,
    StickBreakingIGRHead,
)
from igr.nn.priors import Prior
from igr.nn.sample import Sample
from igr.nn.schedules import (
    ConstantTemperature,
    CosineTemperature,
    ExponentialTemperature,
    KLWarmup,
    LearnedTemperature,
    LinearTemperature,
    TemperatureSchedule,
)

__all__ = [
    "Codebook",
    "ConstantTemperature",
    "CosineTemperature",
    "CountableParameters",
    "ExponentialTemperature",
    "GumbelSoftmaxHead",
    "Head",
    "KLWarmup",
    "LearnedTemperature",
    "LinearTemperature",
    "PlanarFlow",
    "PlanarIGRHead",
    "Prior",
    "Sample",
    "SharpStickBreakingIGRHead",
    "SoftmaxIGRHead",
    "StickBreakingIGRHead",
    "TemperatureSchedule",
]
