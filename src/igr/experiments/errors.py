"""What goes wrong in a way that the user can mend."""

from __future__ import annotations


class UserError(Exception):
    """Something that the user can mend; the message is one line that says how."""


class ConfigError(UserError, ValueError):
    """A setting that makes no sense."""


class DataError(UserError, ValueError):
    """A data set that is not there, or not what it should be."""


class RecordError(UserError):
    """A folder or file that cannot be used or written."""
