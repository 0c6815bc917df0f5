"""MNIST and Fashion-MNIST, and others that come in MNIST's format."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from igr.experiments.data.source import Archive, Bytes, Files, Source, Split


@dataclass(frozen=True)
class Idx(Source):
    """A data set in the IDX format of MNIST: a file of images for each split, packed by gzip.

    With `binary`, a pixel is 1 where its grey level is at least 0.5, that is, from 128 of 255 on.
    """

    binary: bool
    citation: str
    archives: Mapping[Split, Archive]
    num_train: int = 60_000
    num_test: int = 10_000
    shape: tuple[int, int] = (28, 28)
    held_out: int = 10_000

    def images(self, split: Split, files: Files) -> Bytes:
        """Grey levels, or 0 and 1."""
        count = self.num_train if split == "train" else self.num_test
        grey = _read_idx(files, self.archives[split], (count, *self.shape)).reshape(count, -1)
        return (grey >= 128).astype(np.uint8) if self.binary else grey


def _read_idx(files: Files, archive: Archive, shape: tuple[int, ...]) -> Bytes:
    """Content of an IDX file of bytes, which must have the given shape and hash."""
    path = files.find(archive)
    packed = files.read(path)
    if packed[:2] != b"\x1f\x8b":
        raise files.damaged(
            path, f"is no gzip file (it begins with {packed[:2].hex() or 'nothing'})"
        )
    try:
        content = gzip.decompress(packed)
    except (EOFError, OSError, zlib.error) as error:
        cut = isinstance(error, EOFError)
        raise files.damaged(path, "is cut short" if cut else f"is damaged ({error})") from error

    # Four bytes of magic: two of 0, the type (8 for bytes), the number of dimensions; then those, big-endian.
    magic = bytes([0, 0, 8, len(shape)])
    if content[:4] != magic:
        came = content[:4].hex() or "nothing"
        raise files.damaged(path, f"is no IDX file (expected magic {magic.hex()}, got {came})")
    start = 4 + 4 * len(shape)
    came_shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    if came_shape != shape:
        raise files.damaged(path, f"has another shape (expected {shape}, got {came_shape})")
    if len(content) - start != math.prod(shape):
        raise files.damaged(
            path,
            f"has another length (expected {math.prod(shape)} values, got {len(content) - start})",
        )
    came = hashlib.sha256(content).hexdigest()
    if came != archive.sha256:
        raise files.damaged(
            path, f"was altered (expected content of sha256 {archive.sha256}, got {came})"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"


def _idx_archives(base: str, *hashes: str) -> Mapping[Split, Archive]:
    """Both files at an address, by their hashes: the md5 of each, and the sha256 of its content."""
    names: dict[Split, str] = {
        "train": "train-images-idx3-ubyte.gz",
        "test": "t10k-images-idx3-ubyte.gz",
    }
    return MappingProxyType(
        {
            split: Archive(name, f"{base}/{name}", *both.split())
            for (split, name), both in zip(names.items(), hashes, strict=True)
        }
    )


MNIST = Idx(
    binary=True,
    citation="Y. LeCun, C. Cortes and C. J. C. Burges. The MNIST database of handwritten digits. 1998.",
    archives=_idx_archives(
        _MNIST,
        "f68b3c2dcbeaaa9fbdd348bbdeb94873 ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "9fb629c4189551a2d022fa330f9573f3 0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
)

FASHION_MNIST = Idx(
    binary=False,
    citation="H. Xiao, K. Rasul and R. Vollgraf. Fashion-MNIST. arXiv:1708.07747, 2017.",
    archives=_idx_archives(
        _FASHION,
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bef4ecab320f06d8554ea6380940ec79 5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
)
