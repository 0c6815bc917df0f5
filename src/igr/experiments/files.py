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
    """Write a file so that its name holds the old content or all of the new, whatever happens meanwhile.

    Its folder is made if need be.
    """
    make_folder(path.parent)
    data = content.encode() if isinstance(content, str) else content
    try:
        temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:12]}.tmp"
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


def is_held(path: Path) -> bool:
    """Whether a process has a lock; nothing is written where the system can tell without."""
    try:
        import fcntl
    except ImportError:  # Windows
        try:
            with acquire(path):
                return False
        except Busy:
            return True
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError as error:
        raise RecordError(f"cannot read {path}: {reason(error)}") from error
    return False


def reason(error: OSError) -> str:
    """What the system says of an error."""
    return error.strerror or str(error)


def expanded(path: Path) -> Path:
    """A path that a user named, ``~`` and all."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise RecordError(f"{path}: {error}") from error


def check_name(path: Path) -> None:
    """Raise RecordError for a path that safetensors cannot open: it would call what is there damaged."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise RecordError(f"cannot use {path}: its name is not UTF-8") from None


def make_folder(path: Path) -> None:
    """Make a folder, and those it lies in, unless they are there."""
    check_name(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(f"cannot create folder {path}: {reason(error)}") from error


def write_json(path: Path, value: Any, write: Write = write_atomically) -> None:
    """Replace a file by `value` as JSON."""
    write(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path, shape: Any = {}) -> dict[str, Any]:  # noqa: B006
    """The JSON object that a file holds.

    Raises:
        RecordError: if it cannot be read, or has not the form of `shape`; see `misfit`.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"cannot read {path}: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is damaged: not JSON ({error})") from error
    if what := misfit(value, shape):
        raise RecordError(f"{path} is damaged: {what}")
    return value


def misfit(value: Any, shape: Any, where: str = "it") -> str | None:
    """What is wrong with a value read from JSON, if it has not the form of `shape`.

    That is a type (`float` stands for any number), None, a predicate, a tuple of which one must fit, a list of one
    shape that every item must have, or a dictionary of what must be there.

    >>> misfit({"runs": [{"seed": 1}, {"seed": "x"}]}, {"runs": [{"seed": int}]})
    "runs[1].seed: 'x' is not int"
    """
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{where}: expected an object"
        prefix = "" if where == "it" else f"{where}."
        if missing := [name for name in shape if name not in value]:
            return f"{prefix}{missing[0]} is missing"
        parts = [(value[name], each, f"{prefix}{name}") for name, each in shape.items()]
        return next(filter(None, (misfit(*part) for part in parts)), None)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where}: expected a list"
        parts = [(each, shape[0], f"{where}[{i}]") for i, each in enumerate(value)]
        return next(filter(None, (misfit(*part) for part in parts)), None)
    if isinstance(shape, tuple):
        wrong = [misfit(value, each, where) for each in shape]
        return None if None in wrong else wrong[0]
    if shape is None:
        fits = value is None
    elif isinstance(shape, type):
        kinds = (int, float) if shape is float else shape
        fits = isinstance(value, kinds) and isinstance(value, bool) == (shape is bool)
    else:
        fits = shape(value)
    return None if fits else f"{where}: {value!r:.60} is not {getattr(shape, '__name__', shape)}"


def inside(value: Any) -> bool:
    """Whether a value is a path that leads out of no folder."""
    path = Path(value) if isinstance(value, str) and "\0" not in value else Path("/")
    return not path.is_absolute() and path.parts != () and ".." not in path.parts


def write_csv(path: Path, rows: Sequence[dict[str, Any]], write: Write = write_atomically) -> None:
    """Replace a file by a table; columns in the order of first appearance."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(path, text.getvalue())
