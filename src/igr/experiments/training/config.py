"""What a run is: a frozen, validated record that can be written to and read from JSON."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin, get_type_hints

from igr import _checks
from igr.experiments.errors import ConfigError, check_choice
from igr.experiments.models import families, likelihoods
from igr.experiments.training.objectives import ESTIMATORS, OWN_TEMPERATURE, RELAXED, declared

ARCHITECTURES: dict[str, tuple[int, ...]] = {"linear": (), "nonlinear": (512, 256), "sop": ()}
"""Widths of the encoder's hidden layers; the decoder's are the same in reverse.

The last is no autoencoder but structured output prediction, see `igr.experiments.models.sop`.
"""


def check_positive(name: str, value: float) -> None:
    """Raise ConfigError unless `value` is a positive finite number."""
    if not (isinstance(value, int | float) and 0 < value < math.inf):
        raise ConfigError(f"{name}: expected a positive finite number, got {value}")


def check_temperature(name: str, value: float) -> None:
    """Raise ConfigError unless `value` is a number that the library takes as a temperature."""
    check_positive(name, value)
    try:
        _checks.temperature(name, value)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def check_count(name: str, value: int, least: int = 1) -> None:
    """Raise ConfigError unless `value` is a whole number of at least `least`."""
    if not (isinstance(value, int) and value >= least):
        raise ConfigError(f"{name}: expected a whole number of at least {least}, got {value}")


def check_distinct(name: str, values: Sequence[object]) -> None:
    """Raise ConfigError if a value is given twice; numbers are told apart by as many digits as names of runs have."""
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    if len(set(texts)) < len(texts):
        raise ConfigError(f"{name}: given twice among {', '.join(texts)}")


@dataclass(frozen=True)
class _Shared:
    """What all runs of a sweep have in common."""

    dataset: str = "digits"
    architecture: str = "linear"
    decoder: str = "bernoulli"
    num_variables: int = 20
    num_categories: int = 10
    prior_temperature: float = 0.5
    unit_scale: bool = False
    epochs: int = 100
    estimator: str = "pathwise"
    estimator_temperature: float | None = None
    kl_weight: float | None = None
    num_samples: int = 1
    lr: float = 3e-4
    lr_decay: float = 0.0
    lr_min: float = 0.0
    batch_size: int = 100
    train_images: int = 0
    held_out: int = 0
    test_curve: bool = False

    def check(self) -> None:
        check_choice("architecture", self.architecture, ARCHITECTURES)
        check_choice("decoder", self.decoder, likelihoods.LIKELIHOODS)
        check_count("num-variables", self.num_variables)
        check_count("num-categories", self.num_categories, least=2)
        check_temperature("prior-temperature", self.prior_temperature)
        check_count("epochs", self.epochs)
        check_choice("estimator", self.estimator, (*RELAXED, *ESTIMATORS))
        self._check_estimator()
        if self.architecture == "sop":
            self._check_sop()
        check_positive("lr", self.lr)
        for name, value in {"lr-decay": self.lr_decay, "lr-min": self.lr_min}.items():
            if value:
                check_positive(name, value)
        check_count("batch-size", self.batch_size)
        check_count("train-images", self.train_images, least=0)
        check_count("held-out", self.held_out, least=0)

    def _check_estimator(self) -> None:
        least = 1
        if self.estimator in ESTIMATORS:
            needed = declared(self.estimator)
            least = needed.min_samples
            if needed.max_categories not in (None, self.num_categories):
                raise ConfigError(
                    f"num-categories: {self.estimator} is for {needed.max_categories}, got {self.num_categories}"
                )
        check_count("num-samples", self.num_samples, least=least)
        if self.kl_weight is not None and not math.isfinite(self.kl_weight):
            raise ConfigError(f"kl-weight: expected a finite number, got {self.kl_weight}")
        if self.estimator_temperature is not None:
            check_temperature("estimator-temperature", self.estimator_temperature)
            if self.estimator not in OWN_TEMPERATURE:
                raise ConfigError(
                    f"estimator-temperature: of {', '.join(OWN_TEMPERATURE)} alone, and not of {self.estimator}"
                )

    def _check_sop(self) -> None:
        if self.num_categories != 2:
            raise ConfigError(
                f"num-categories: structured output prediction has binary units, 2, got {self.num_categories}"
            )
        if self.kl_weight is not None:
            raise ConfigError("kl-weight: structured output prediction has no KL to weigh")
        if self.estimator != "pathwise":
            raise ConfigError(
                f"estimator: structured output prediction is trained by pathwise, got {self.estimator}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON has them, those that were not set left out."""
        return {
            field.name: list(value) if isinstance(value, tuple) else value
            for field in dataclasses.fields(self)
            for value in [getattr(self, field.name)]
            if value is not None
        }

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Any:
        """The inverse of `to_dict`."""
        names = {field.name for field in dataclasses.fields(cls)}
        if strange := sorted(set(settings) - names):
            raise ConfigError(f"unknown setting {strange[0]!r}: written by another version of igr?")
        fixed: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()
        }
        hints = get_type_hints(cls)
        for name, value in fixed.items():
            if not _is(value, hints[name]):
                kind = getattr(hints[name], "__name__", hints[name])
                raise ConfigError(f"{name}: expected {kind}, got {value!r:.60}")
        return cls(**fixed)


def _is(value: Any, hint: Any) -> bool:
    """Whether a value is of a setting's type; a whole number is a number too."""
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_is(each, get_args(hint)[0]) for each in value)
    if get_args(hint):
        return any(_is(value, each) for each in get_args(hint))
    kinds = (int, float) if hint is float else hint
    return isinstance(value, kinds) and isinstance(value, bool) == (hint is bool)


@dataclass(frozen=True)
class RunConfig(_Shared):
    """One run: one family, one temperature, one seed."""

    family: str = "igr-i"
    temperature: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        self.check()
        check_choice("family", self.family, families.FAMILIES)
        family = families.FAMILIES[self.family]
        if self.estimator in ESTIMATORS and not family.trains_exactly:
            quick = [name for name, each in families.FAMILIES.items() if each.trains_exactly]
            raise ConfigError(
                f"estimator: {self.estimator} needs the categories' probabilities and their gradient, quickly in every"
                f" step, which the families {', '.join(quick)} have, and {self.family} has not"
            )
        if self.unit_scale and not family.has_scale:
            scaled = [name for name, each in families.FAMILIES.items() if each.has_scale]
            raise ConfigError(
                f"unit-scale: {self.family} has no scale to hold; it is for {', '.join(scaled)}"
            )
        check_temperature("temperature", self.temperature)
        check_count("seed", self.seed, least=0)

    @property
    def name(self) -> str:
        """Name of the run's folder within its sweep."""
        return f"{self.family}-t{self.temperature:g}-s{self.seed}"


@dataclass(frozen=True)
class SweepConfig(_Shared):
    """A grid of runs: families x temperatures x seeds."""

    families: tuple[str, ...] = ("igr-i",)
    temperatures: tuple[float, ...] = (0.1,)
    seeds: int = 1

    def __post_init__(self) -> None:
        self.check()
        for name, values in {"family": self.families, "temperature": self.temperatures}.items():
            if not values:
                raise ConfigError(f"{name}: expected at least one")
            check_distinct(name, values)
        check_count("seeds", self.seeds)
        self.runs()

    def runs(self) -> list[RunConfig]:
        """Every run of the grid."""
        settings: dict[str, Any] = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(_Shared)
        }
        grid = itertools.product(self.families, self.temperatures, range(self.seeds))
        return [
            RunConfig(**settings, family=family, temperature=float(temperature), seed=seed)
            for family, temperature, seed in grid
        ]

    def differences(self, other: SweepConfig) -> list[str]:
        """Settings in which `other` differs, each as ``name: here, not there``."""
        mine, theirs = self.to_dict(), other.to_dict()
        names = {**mine, **theirs}
        return [
            f"{k} {mine.get(k)}, not {theirs.get(k)}" for k in names if mine.get(k) != theirs.get(k)
        ]


def stacks(runs: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """Group runs that differ in temperature and seed alone: those can train as one program."""
    groups: dict[RunConfig, list[RunConfig]] = {}
    for run in runs:
        groups.setdefault(dataclasses.replace(run, temperature=1.0, seed=0), []).append(run)
    return list(groups.values())
