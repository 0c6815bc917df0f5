"""The data sets of the paper, and scikit-learn's digits, as tensors.

Files are looked for in ``$IGR_DATA/<name>/``, then in a per-user cache, and otherwise downloaded into that cache.
What they hold is checked against known hashes wherever they came from, so a number computed from them can be
compared with anyone else's. The test images are read when they are first asked for, and by nothing that trains.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import io
import math
import os
import warnings
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from igr.experiments.runs.records import RecordError, write_atomically

__all__ = ["SOURCES", "Archive", "DataError", "Dataset", "Digits", "Idx", "Omniglot", "load"]

Split: TypeAlias = Literal["train", "test"]
Bytes: TypeAlias = npt.NDArray[np.uint8]


class DataError(ValueError):
    """A data set that is not there, or not what it should be; the message is one line for the user."""


@dataclass(frozen=True)
class Archive:
    """A file of a data set.

    Attributes:
        name: its name, in a folder of data and in the cache.
        url: where it is published.
        md5: of the published file, checked when it is downloaded.
        sha256: of what it unpacks to, which an archive packed anew shares; None where the data set is checked
            as a whole.
    """

    name: str
    url: str
    md5: str
    sha256: str | None = None


@dataclass(frozen=True)
class _Files:
    """Finds the archives of one data set."""

    dataset: str
    folder: Path | None
    cache: Path
    download: bool
    notify: Callable[[str], None]
    named_by: str  # what named the folder

    def find(self, archive: Archive) -> Path:
        """Path of the archive, downloaded if need be."""
        # Checked here, since the embedded data set has no files to find.
        if self.folder is not None and not self.folder.parent.is_dir():
            raise DataError(
                f"{self.named_by}: expected a folder that holds {self.dataset}/, "
                f"got {self.folder.parent}, which is none"
            )
        if self.folder is not None and (local := self.folder / archive.name).is_file():
            return local
        cached = self.cache / archive.name
        if not cached.is_file():
            self._fetch(archive, cached)
        return cached

    def _fetch(self, archive: Archive, path: Path) -> None:
        looked = f"{self.folder}, {self.cache}" if self.folder else str(self.cache)
        advice = f"put {archive.name} into $IGR_DATA/{self.dataset}/"
        if not self.download:
            raise DataError(
                f"{self.dataset}: {archive.name} is not in {looked}, and downloads are off: {advice}"
            )
        # Imported here, since a data set that is at hand needs no network.
        import pooch

        _make_folder(self.cache)
        self.notify(f"downloading {archive.url} to {path}")
        pooch.get_logger().setLevel("WARNING")
        try:
            # Downloads under a temporary name, checks, and only then moves the file.
            pooch.retrieve(
                archive.url,
                known_hash=f"md5:{archive.md5}",
                fname=path.name,
                path=path.parent,
                downloader=pooch.HTTPDownloader(timeout=30),
            )
        except ValueError as error:
            raise DataError(
                f"{self.dataset}: the file at {archive.url} is not the published one (expected md5"
                f" {archive.md5}): try again, or {advice}"
            ) from error
        except OSError as error:  # the network's errors are among these, without a number
            if error.errno is not None:
                raise DataError(f"cannot write {path}: {_brief(error)}") from error
            raise DataError(
                f"{self.dataset}: {archive.name} is not in {looked} and cannot be downloaded from"
                f" {archive.url} ({_brief(error)}): connect to the network, or {advice}"
            ) from error

    def damaged(self, path: Path, what: str) -> DataError:
        """The error for a file that is not what it should be."""
        cached = path.parent == self.cache
        mend = "delete it, and it is downloaded anew" if cached else "replace it"
        return DataError(f"{self.dataset}: {path} {what}: {mend}")


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot create folder {path}: {_brief(error)}") from error


def _brief(error: OSError) -> str:
    """The kind of an error, and its text where that is short."""
    text = error.strerror or str(error)
    name = type(error).__name__
    return f"{name}: {text}" if len(text) <= 80 and "\n" not in text else name


def _read(files: _Files, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise files.damaged(path, f"cannot be read ({_brief(error)})") from error


class Source(ABC):
    """Where a data set comes from, and what is done to it."""

    shape: tuple[int, int]
    binary: bool
    held_out: int
    citation: str

    @abstractmethod
    def images(self, split: Split, files: _Files) -> Bytes:
        """Images as ``(n, D)`` bytes; where the data set is binary, of 0 and 1."""

    @abstractmethod
    def labels(self, split: Split, files: _Files) -> Bytes | None:
        """Classes as ``(n,)`` bytes, where the data set has them."""


@dataclass(frozen=True)
class Digits(Source):
    """scikit-learn's 1,797 digits of 8x8 pixels with 17 grey levels: embedded, so no file is needed.

    The digits lie in the order of those who wrote them, so they are shuffled, once and for all; the last
    297 are the test set.
    """

    shape = (8, 8)
    binary = True
    held_out = 300
    citation = "E. Alpaydin and C. Kaynak. Optical Recognition of Handwritten Digits. UCI, 1998."
    num_test = 297

    def _pick(self, split: Split, values: npt.NDArray[Any]) -> Bytes:
        # RandomState, since numpy promises that its numbers never change.
        order = np.random.RandomState(0).permutation(len(values))
        chosen = order[: -self.num_test] if split == "train" else order[-self.num_test :]
        return values[chosen].astype(np.uint8)

    def images(self, split: Split, files: _Files) -> Bytes:
        """Pixels of at least 8 of 16."""
        from sklearn.datasets import load_digits

        return self._pick(split, load_digits().data >= 8)

    def labels(self, split: Split, files: _Files) -> Bytes:
        """The digit of each image."""
        from sklearn.datasets import load_digits

        return self._pick(split, load_digits().target)


@dataclass(frozen=True)
class Idx(Source):
    """A data set in the IDX format of MNIST: four files packed by gzip.

    With `binary`, a pixel is 1 where its grey level is at least 0.5, that is, from 128 of 255 on.
    """

    binary: bool
    citation: str
    archives: Mapping[tuple[Split, Literal["images", "labels"]], Archive]
    num_train: int = 60_000
    num_test: int = 10_000
    shape: tuple[int, int] = (28, 28)
    held_out: int = 10_000

    def _count(self, split: Split) -> int:
        return self.num_train if split == "train" else self.num_test

    def images(self, split: Split, files: _Files) -> Bytes:
        """Grey levels, or 0 and 1."""
        shape = (self._count(split), *self.shape)
        grey = _read_idx(files, self.archives[split, "images"], shape).reshape(shape[0], -1)
        return (grey >= 128).astype(np.uint8) if self.binary else grey

    def labels(self, split: Split, files: _Files) -> Bytes:
        """The class of each image."""
        return _read_idx(files, self.archives[split, "labels"], (self._count(split),))


def _read_idx(files: _Files, archive: Archive, shape: tuple[int, ...]) -> Bytes:
    """Content of an IDX file of bytes, which must have the given shape and hash."""
    path = files.find(archive)
    packed = _read(files, path)
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

    Differs from the paper: its released code binarizes first and resizes then, so that its images are not
    binary (erratum E13).
    """

    background: Archive
    evaluation: Archive
    prepared: Mapping[Split, str]
    """sha256 of each split as prepared and packed, eight pixels to a byte: stands for the archives' content."""
    num_background: int = 19_280
    num_evaluation: int = 13_180
    num_borrowed: int = 5_065
    shape = (28, 28)
    binary = True
    held_out = 5_000
    citation = (
        "B. M. Lake, R. Salakhutdinov and J. B. Tenenbaum. Human-level concept learning through"
        " probabilistic program induction. Science, 350(6266), 2015."
    )
    original = (105, 105)
    version = 1  # of the preparation: part of the name in the cache

    def images(self, split: Split, files: _Files) -> Bytes:
        """Images as 0 and 1, prepared once and then kept in the cache."""
        parts = self._parts(split)
        paths = [files.find(part.archive) for part in parts]
        contents = [_read(files, path) for path in paths]
        key = hashlib.sha256(b"".join(hashlib.sha256(c).digest() for c in contents)).hexdigest()
        kept = files.cache / f"{split}-28x28-v{self.version}-{key[:16]}.npy"
        packed = self._kept(kept, split)
        if packed is None:
            files.notify(f"preparing the {split} images of {files.dataset} (once)")
            inks = map(partial(self._ink, files), paths, contents, parts)
            packed = np.concatenate([np.packbits(_shrink(ink, self.shape), axis=1) for ink in inks])
            if hashlib.sha256(packed.tobytes()).hexdigest() != self.prepared[split]:
                raise DataError(
                    f"{files.dataset}: {' or '.join(map(str, paths))} was altered (the {split} images are not"
                    " the published ones): replace it, or delete it, and it is downloaded"
                )
            _keep(kept, packed)
        return np.unpackbits(packed, axis=1)

    def labels(self, split: Split, files: _Files) -> None:
        """None: the characters of the test set are not those of the training set."""

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

    def _ink(self, files: _Files, path: Path, content: bytes, part: _Part) -> Bytes:
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
    result = np.empty((len(ink), shape[0] * shape[1]), np.uint8)
    for first in range(0, len(ink), 1000):
        some = torch.from_numpy(ink[first : first + 1000]).float()
        covered = rows @ some @ columns.T
        result[first : first + 1000] = (2 * covered > area).flatten(1).numpy()
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
        _make_folder(path.parent)
        write_atomically(path, content.getvalue())
    except (DataError, RecordError) as error:
        warnings.warn(f"{error}; the images will be prepared anew each time", stacklevel=2)


_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_OMNIGLOT = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"


def _idx_archives(
    base: str, hashes: dict[tuple[Split, Literal["images", "labels"]], tuple[str, str]]
) -> Mapping[tuple[Split, Literal["images", "labels"]], Archive]:
    prefix = {"train": "train", "test": "t10k"}
    suffix = {"images": "idx3", "labels": "idx1"}
    names = {(s, k): f"{prefix[s]}-{k}-{suffix[k]}-ubyte.gz" for s, k in hashes}
    return MappingProxyType(
        {key: Archive(names[key], f"{base}/{names[key]}", *pair) for key, pair in hashes.items()}
    )


SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        "digits": Digits(),
        "mnist": Idx(
            binary=True,
            citation="Y. LeCun, C. Cortes and C. J. C. Burges. The MNIST database of handwritten digits. 1998.",
            archives=_idx_archives(
                _MNIST,
                {
                    ("train", "images"): (
                        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                    ),
                    ("train", "labels"): (
                        "d53e105ee54ea40749a09fcbcd1e9432",
                        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                    ),
                    ("test", "images"): (
                        "9fb629c4189551a2d022fa330f9573f3",
                        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                    ),
                    ("test", "labels"): (
                        "ec29112dd5afa0611ce80d1b7f02629c",
                        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
                    ),
                },
            ),
        ),
        "fashion-mnist": Idx(
            binary=False,
            citation="H. Xiao, K. Rasul and R. Vollgraf. Fashion-MNIST. arXiv:1708.07747, 2017.",
            archives=_idx_archives(
                _FASHION,
                {
                    ("train", "images"): (
                        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                    ),
                    ("train", "labels"): (
                        "25c81989df183df01b3e8a0aad5dffbe",
                        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                    ),
                    ("test", "images"): (
                        "bef4ecab320f06d8554ea6380940ec79",
                        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                    ),
                    ("test", "labels"): (
                        "bb300cfdad3c16e7a12a480ee83cd310",
                        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
                    ),
                },
            ),
        ),
        "omniglot": Omniglot(
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
        ),
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
    _files: _Files = field(repr=False)

    @cached_property
    def test(self) -> Tensor:
        """The test images, read when first asked for: whatever trains or chooses must leave them alone.

        Raises:
            DataError: where their file is missing or damaged.
        """
        return _to_float(self._source, self._source.images("test", self._files))

    @cached_property
    def train_labels(self) -> Tensor | None:
        """Classes of the training images, where the data set has them."""
        return _to_long(self._source.labels("train", self._files))

    @cached_property
    def test_labels(self) -> Tensor | None:
        """Classes of the test images, where the data set has them."""
        return _to_long(self._source.labels("test", self._files))

    def split(self, held_out: int | None = None) -> tuple[Tensor, Tensor]:
        """The training images without the last `held_out`, and those: for choosing, say, a temperature.

        Args:
            held_out: how many; by default 10,000 (Omniglot: 5,000, digits: 300).

        Raises:
            DataError: unless 0 <= held_out < n.

        >>> train, held_out = load("digits").split()
        >>> train.shape, held_out.shape
        (torch.Size([1200, 64]), torch.Size([300, 64]))
        """
        count = self._source.held_out if held_out is None else held_out
        if not 0 <= count < len(self.train):
            raise DataError(
                f"held_out: expected at least 0 and fewer than the {len(self.train)} training images of"
                f" {self.name}, got {count}"
            )
        first = len(self.train) - count
        return self.train[:first], self.train[first:]


def _to_float(source: Source, images: Bytes) -> Tensor:
    result = torch.from_numpy(images.astype(np.float32))
    return result if source.binary else result.div_(255)


def _to_long(labels: Bytes | None) -> Tensor | None:
    return None if labels is None else torch.from_numpy(labels.astype(np.int64))


def load(
    name: str,
    *,
    folder: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    download: bool = True,
    notify: Callable[[str], None] = lambda message: None,
    sources: Mapping[str, Source] = SOURCES,
) -> Dataset:
    """A data set by name: ``digits``, ``mnist``, ``fashion-mnist`` or ``omniglot``.

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
    if name not in sources:
        near = difflib.get_close_matches(str(name).lower(), sources, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"dataset: expected one of {', '.join(sources)}, got {name!r}{hint}")
    source = sources[name]
    where = _data_folder(name, folder)
    named_by = "IGR_DATA" if folder is None else "folder"
    files = _Files(name, where, _cache_folder(name, cache), download, notify, named_by)
    train = _to_float(source, source.images("train", files))
    return Dataset(name, source.shape, source.binary, source.citation, train, source, files)


def _data_folder(name: str, folder: str | os.PathLike[str] | None) -> Path | None:
    named = os.environ.get("IGR_DATA") if folder is None else folder
    if not named:
        return None
    return Path(named) / name


def _cache_folder(name: str, cache: str | os.PathLike[str] | None) -> Path:
    if cache is not None:
        return Path(cache) / name
    from platformdirs import user_cache_path

    return user_cache_path("igr", appauthor=False) / name
