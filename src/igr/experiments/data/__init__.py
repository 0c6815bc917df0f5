"""The data sets of the paper, and scikit-learn's digits, as tensors.

Files are looked for in ``$IGR_DATA/<name>/``, then in a per-user cache, and otherwise downloaded into that cache.
What they hold is checked against known hashes wherever they came from, so a number computed from them can be
compared with anyone else's. The test images are read when they are first asked for, and by nothing that trains.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from igr.experiments.data.digits import Digits
from igr.experiments.data.idx import FASHION_MNIST, MNIST, Idx
from igr.experiments.data.omniglot import OMNIGLOT, OMNIGLOT_GREY, Omniglot
from igr.experiments.data.source import Archive, Bytes, Files, Source
from igr.experiments.errors import DataError, check_choice

__all__ = [
    "SOURCES",
    "Archive",
    "DataError",
    "Dataset",
    "Digits",
    "Idx",
    "Omniglot",
    "load",
    "source_of",
]

SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        "digits": Digits(),
        "mnist": MNIST,
        "fashion-mnist": FASHION_MNIST,
        "omniglot": OMNIGLOT,
        "omniglot-grey": OMNIGLOT_GREY,
    }
)
"""Every data set by name."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images as rows, ``(n, D)`` in float32 between 0 and 1; those of a binary set are 0 or 1.

    Attributes:
        name: as `load` has it.
        shape: height and width; D is their product.
        binary: whether the images are binarized, at 0.5, once and for all.
        citation: where the data comes from.
        train: the training images.
    """

    name: str
    shape: tuple[int, int]
    binary: bool
    citation: str
    train: Tensor = field(repr=False)
    _source: Source = field(repr=False)
    _files: Files = field(repr=False)

    @cached_property
    def test(self) -> Tensor:
        """The test images, read when first asked for: whatever trains or chooses must leave them alone.

        Raises:
            DataError: where their file is missing or damaged.
        """
        return _to_float(self._source, self._source.images("test", self._files))


def _to_float(source: Source, images: Bytes) -> Tensor:
    result = torch.from_numpy(images.astype(np.float32))
    return result if source.binary else result.div_(255)


def source_of(name: str, sources: Mapping[str, Source] = SOURCES) -> Source:
    """What is known of a data set without reading it.

    Raises:
        DataError: for an unknown name.

    >>> source_of("omniglot").num_train
    24345
    """
    check_choice("dataset", name, sources, DataError)
    return sources[name]


def load(
    name: str,
    *,
    folder: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    download: bool = True,
    notify: Callable[[str], None] = lambda message: None,
    sources: Mapping[str, Source] = SOURCES,
) -> Dataset:
    """A data set by name: ``digits``, ``mnist``, ``fashion-mnist``, ``omniglot``, or ``omniglot-grey`` as released.

    Args:
        name: which one.
        folder: holds a folder of files for each data set; by default, what ``$IGR_DATA`` names.
        cache: folder for what is downloaded or prepared; by default, the user's cache.
        download: whether to download what is found in neither.
        notify: called with a line of text before anything that takes long.
        sources: what is known of each data set.

    Raises:
        DataError: for an unknown name, and where a file is missing and cannot be downloaded, or is not what
            was published.

    >>> digits = load("digits")
    >>> digits.train.shape, digits.test.shape, digits.shape
    (torch.Size([1500, 64]), torch.Size([297, 64]), (8, 8))
    """
    source = source_of(name, sources)
    named_by = "IGR_DATA" if folder is None else "folder"
    parent = os.environ.get("IGR_DATA") if folder is None else folder
    if cache is None:
        from platformdirs import user_cache_path

        cache = user_cache_path("igr", appauthor=False)
    place = source.folder or name
    where = Path(parent) / place if parent else None
    files = Files(name, where, Path(cache) / place, download, notify, named_by)
    train = _to_float(source, source.images("train", files))
    return Dataset(name, source.shape, source.binary, source.citation, train, source, files)
