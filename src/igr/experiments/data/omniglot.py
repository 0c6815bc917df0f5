"""Omniglot."""

from __future__ import annotations

import hashlib
import io
import math
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from igr.experiments.data.source import Archive, Bytes, Files, Source, Split
from igr.experiments.errors import DataError, RecordError
from igr.experiments.files import write_atomically


@dataclass(frozen=True)
class _Part:
    """Those images of an archive, sorted by name, that belong to a split."""

    archive: Archive
    count: int  # of images in the archive
    pick: slice


@dataclass(frozen=True)
class Omniglot(Source):
    """Handwritten characters of 50 alphabets: PNG images of 105x105 pixels in two zip files.

    The training set is the whole of the background set and the first `num_borrowed` images, by name, of the
    evaluation set; the test set is the rest of that. Ink, black in the files, is 1. A pixel of the 28x28
    covers 3.75 x 3.75 of the original's and is 1 where more than half of it is ink, which is decided in
    whole numbers, so that every machine gets the same images.

    Differs from the paper: its released code binarizes first and resizes then, by bilinear interpolation, so that its
    images are not binary, and paper is 1 (erratum E13). So are these where `binary` is false.
    """

    background: Archive
    evaluation: Archive
    prepared: Mapping[Split, str]
    """sha256 of each split as prepared and, where binary, packed eight pixels to a byte: stands for the archives'."""
    num_background: int = 19_280
    num_evaluation: int = 13_180
    num_borrowed: int = 5_065
    binary: bool = True
    folder: str = ""
    shape = (28, 28)
    held_out = 5_000
    citation = (
        "B. M. Lake, R. Salakhutdinov and J. B. Tenenbaum. Human-level concept learning through"
        " probabilistic program induction. Science, 350(6266), 2015."
    )
    original = (105, 105)
    version = 1  # of the preparation: part of the name in the cache

    @property
    def num_train(self) -> int:
        return self.num_background + self.num_borrowed

    @property
    def num_test(self) -> int:
        return self.num_evaluation - self.num_borrowed

    def images(self, split: Split, files: Files) -> Bytes:
        """Images, prepared once and then kept in the cache."""
        parts = self._parts(split)
        paths = [files.find(part.archive) for part in parts]
        contents = [files.read(path) for path in paths]
        key = hashlib.sha256(b"".join(hashlib.sha256(c).digest() for c in contents)).hexdigest()
        grey = "" if self.binary else "-grey"
        kept = files.cache / f"{split}-28x28{grey}-v{self.version}-{key[:16]}.npy"
        packed = self._kept(kept, split)
        if packed is None:
            files.notify(f"preparing the {split} images of {files.dataset} (once)")
            inks = map(partial(self._ink, files), paths, contents, parts)
            packed = np.concatenate([self._packed(ink) for ink in inks])
            if hashlib.sha256(packed.tobytes()).hexdigest() != self.prepared[split]:
                raise DataError(
                    f"{files.dataset}: {' or '.join(map(str, paths))} was altered (the {split} images are not"
                    " the published ones): replace it, or delete it, and it is downloaded"
                )
            _keep(kept, packed)
        return np.unpackbits(packed, axis=1) if self.binary else packed

    def _packed(self, ink: Bytes) -> Bytes:
        if self.binary:
            return np.packbits(_shrink(ink, self.shape), axis=1)
        return _interpolate(1 - ink, self.shape)

    def _parts(self, split: Split) -> list[_Part]:
        borrowed = slice(self.num_borrowed), slice(self.num_borrowed, None)
        evaluation = [_Part(self.evaluation, self.num_evaluation, pick) for pick in borrowed]
        if split == "test":
            return evaluation[1:]
        return [_Part(self.background, self.num_background, slice(None)), evaluation[0]]

    def _kept(self, path: Path, split: Split) -> Bytes | None:
        """What an earlier call has prepared, where it is there and whole."""
        try:
            packed = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        whole = hashlib.sha256(packed.tobytes()).hexdigest() == self.prepared[split]
        return packed if whole else None

    def _ink(self, files: Files, path: Path, content: bytes, part: _Part) -> Bytes:
        """Some of the images of an archive, in the order of their names; ink is 1."""
        from PIL import Image

        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                folder = f"{Path(part.archive.name).stem}/"
                names = sorted(
                    name
                    for name in archive.namelist()
                    if name.startswith(folder) and name.endswith(".png")
                )
                if len(names) != part.count:
                    raise files.damaged(
                        path, f"is not whole (expected {part.count} images, got {len(names)})"
                    )
                images = np.empty((len(names[part.pick]), *self.original), np.uint8)
                for image, name in zip(images, names[part.pick], strict=True):
                    with Image.open(io.BytesIO(archive.read(name))) as png:
                        if png.size != self.original[::-1]:
                            raise files.damaged(
                                path,
                                f"has another shape (expected 105x105 pixels, {name} has"
                                f" {png.width}x{png.height})",
                            )
                        image[:] = np.asarray(png.convert("L")) < 128
        # Pillow's errors are OSError and SyntaxError
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, SyntaxError) as error:
            raise files.damaged(path, f"is no zip file, cut short or damaged ({error})") from error
        return images


def _shrink(ink: Bytes, shape: tuple[int, int]) -> Bytes:
    """Binary images ``(n, H, W)`` as ``(n, h * w)``: 1 where more than half of a new pixel is ink.

    Lengths are counted in units in which the old and the new pixels are both whole, so the sums are exact.
    """
    rows, columns = (
        torch.from_numpy(_overlaps(*sizes)) for sizes in zip(ink.shape[1:], shape, strict=True)
    )
    area = int(rows[0].sum() * columns[0].sum())
    return _resized(ink, shape, lambda some: 2 * (rows @ some @ columns.T) > area)


def _interpolate(images: Bytes, shape: tuple[int, int]) -> Bytes:
    """Binary images ``(n, H, W)`` as grey levels ``(n, h * w)``, by bilinear interpolation.

    From 105 to 28 pixels the weights are multiples of 1/64, so that every machine gets the same images.
    """

    def resize(some: Tensor) -> Tensor:
        return (255 * F.interpolate(some.unsqueeze(1), shape, mode="bilinear")).round()

    return _resized(images, shape, resize)


def _resized(images: Bytes, shape: tuple[int, int], resize: Callable[[Tensor], Tensor]) -> Bytes:
    """What `resize` makes of images ``(n, H, W)``, a thousand at a time."""
    result = np.empty((len(images), shape[0] * shape[1]), np.uint8)
    for first in range(0, len(images), 1000):
        some = torch.from_numpy(images[first : first + 1000]).float()
        result[first : first + 1000] = resize(some).flatten(1).numpy()
    return result


def _overlaps(old: int, new: int) -> npt.NDArray[np.float32]:
    """How much of each of `new` equal pixels lies in each of `old`, in units of ``1 / lcm`` of the whole."""
    whole = math.lcm(old, new)
    edges = np.arange(new + 1)[:, None] * (whole // new)
    left = np.arange(old) * (whole // old)
    right = left + whole // old
    inside = np.minimum(edges[1:], right) - np.maximum(edges[:-1], left)
    return np.maximum(inside, 0).astype(np.float32)


def _keep(path: Path, packed: Bytes) -> None:
    """Writes what was prepared into the cache; where that fails, the next call prepares it again."""
    content = io.BytesIO()
    np.save(content, packed, allow_pickle=False)
    try:
        write_atomically(path, content.getvalue())
    except RecordError as error:
        warnings.warn(f"{error}; the images will be prepared anew each time", stacklevel=2)


_OMNIGLOT = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"


OMNIGLOT = Omniglot(
    background=Archive(
        "images_background.zip",
        f"{_OMNIGLOT}/images_background.zip",
        "68d2efa1b9178cc56df9314c21c6e718",
    ),
    evaluation=Archive(
        "images_evaluation.zip",
        f"{_OMNIGLOT}/images_evaluation.zip",
        "6b91aef0f799c5bb55b94e3f2daec811",
    ),
    prepared=MappingProxyType(
        {
            "train": "cd3c295bc7bd1d955b14a5aa32ae5e0701f320f43cf7d838ccd36413e0cbb690",
            "test": "4dbffcf2ba6d8940dda6313ac5510a6feba9ce7690b8c5d10c6abaa5dcce6bd6",
        }
    ),
)
OMNIGLOT_GREY = replace(
    OMNIGLOT,
    binary=False,
    folder="omniglot",
    prepared=MappingProxyType(
        {
            "train": "c6b8d8d0c4f456e735c7b873d780b8a09245dd03d54c9bc4f3cdc24b8be05ce0",
            "test": "f7c57f4573484b9ef4c8e896d24fae1e2a6884ba7b4bdfedc12924c96db0227d",
        }
    ),
)
