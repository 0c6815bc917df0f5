"""Files that are never half-written under their name."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeAlias

import filelock

from igr.experiments.errors import RecordError


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that its name holds the old content or all of the new, whatever happens meanwhile."""
    data = content.encode() if isinstance(content, str) else content
    try:
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
        try:
            # Not by tempfile, whose files nobody else may read.
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise RecordError(f"cannot write {path}: {reason(error)}") from error


def store(path: Path, content: bytes | str) -> None:
    """`write_atomically`, in a folder that is made if need be."""
    make_folder(path.parent)
    write_atomically(path, content)


Write: TypeAlias = Callable[[Path, "bytes | str"], object]
"""Writes a file, here or where it is sent."""


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_temporary(folder: Path, name: str = "") -> None:
    """Remove what a killed `write_atomically` left; the caller makes sure that no other process is writing."""
    for stale in folder.glob(f".{name}*.tmp"):
        stale.unlink(missing_ok=True)


class Busy(Exception):  # noqa: N818
    """Another process holds what is needed."""


def acquire(path: Path, timeout: float = 0.0) -> AbstractContextManager[Any]:
    """Take a lock for this process alone; it is released at the end of a ``with`` block.

    Raises:
        Busy: if another process still has it after so many seconds.
    """
    try:
        return filelock.FileLock(path).acquire(timeout=timeout)
    except filelock.Timeout:
        raise Busy(path) from None
    except OSError as error:
        raise RecordError(f"cannot lock {path}: {reason(error)}") from error


def reason(error: OSError) -> str:
    """What the system says of an error."""
    return error.strerror or str(error)


def make_folder(path: Path) -> None:
    """Make a folder, and those it lies in, unless they are there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(f"cannot create folder {path}: {reason(error)}") from error


def write_json(path: Path, value: Any, write: Write = write_atomically) -> None:
    """Replace a file by `value` as JSON."""
    write(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds."""
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise RecordError(f"cannot read {path}: {reason(error)}") from error
    except ValueError as error:
        raise RecordError(f"{path} is damaged: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise RecordError(f"{path} is damaged: expected a JSON object")
    return value


def write_csv(path: Path, rows: Sequence[dict[str, Any]], write: Write = write_atomically) -> None:
    """Replace a file by a table; columns in the order of first appearance."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(path, text.getvalue())
