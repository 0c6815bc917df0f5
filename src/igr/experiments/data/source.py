"""What a data set is made of: archives that are found or downloaded, and what is done to them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from igr.experiments.errors import DataError, RecordError
from igr.experiments.files import make_folder

Split: TypeAlias = Literal["train", "test"]
Bytes: TypeAlias = npt.NDArray[np.uint8]


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
class Files:
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

        try:
            make_folder(self.cache)
        except RecordError as error:
            raise DataError(str(error)) from error
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

    def read(self, path: Path) -> bytes:
        """What is in a file."""
        try:
            return path.read_bytes()
        except OSError as error:
            raise self.damaged(path, f"cannot be read ({_brief(error)})") from error

    def damaged(self, path: Path, what: str) -> DataError:
        """The error for a file that is not what it should be."""
        cached = path.parent == self.cache
        mend = "delete it, and it is downloaded anew" if cached else "replace it"
        return DataError(f"{self.dataset}: {path} {what}: {mend}")


def _brief(error: OSError) -> str:
    """The kind of an error, and its text where that is short."""
    text = error.strerror or str(error)
    name = type(error).__name__
    return f"{name}: {text}" if len(text) <= 80 and "\n" not in text else name


class Source(ABC):
    """Where a data set comes from, and what is done to it."""

    shape: tuple[int, int]
    binary: bool
    held_out: int
    """How many training images, the last ones, are kept back where the paper's protocol chooses by them."""
    citation: str
    lr = 3e-4
    """Adam's learning rate where none is given."""
    folder = ""
    """Of its files, where that is not named as the data set."""

    @property
    @abstractmethod
    def num_train(self) -> int:
        """How many images there are to train on."""

    @property
    @abstractmethod
    def num_test(self) -> int:
        """How many to test on."""

    @abstractmethod
    def images(self, split: Split, files: Files) -> Bytes:
        """Images as ``(n, D)`` bytes; where the data set is binary, of 0 and 1."""
