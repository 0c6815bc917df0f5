"""What goes wrong in a way that the user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something that the user can mend; the message is one line that says how."""


class ConfigError(UserError, ValueError):
    """A setting that makes no sense."""


class DataError(UserError, ValueError):
    """A data set that is not there, or not what it should be."""


class RecordError(UserError):
    """A folder or file that cannot be used or written."""


def check_choice(
    name: str,
    value: str,
    choices: Iterable[str],
    kind: type[ConfigError] | type[DataError] = ConfigError,
) -> None:
    """Raise an error of that kind, with the nearest choice, unless `value` is one of `choices`."""
    choices = list(choices)
    if value in choices:
        return
    near = difflib.get_close_matches(str(value).lower(), choices, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise kind(f"{name}: expected one of {', '.join(choices)}, got {value!r}{hint}")
