"""What a folder of records holds."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import safetensors.torch

# What depends on the clock, or on what else there was to do.
_CHANGING = ("seconds", "date", "side_by_side")


def _without_changing(value: object) -> object:
    if isinstance(value, dict):
        return {
            k: _without_changing(v)
            for k, v in value.items()
            if not any(part in k for part in _CHANGING)
        }
    return [_without_changing(v) for v in value] if isinstance(value, list) else value


def records(root: Path) -> dict[str, object]:
    """Everything that is left on disk, without what changes and what a later process would tidy up."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_dir() or path.name.endswith((".lock", ".tmp")):
            continue
        if path.suffix == ".json":
            found[name] = _without_changing(json.loads(path.read_text()))
        elif path.suffix == ".csv":
            table = pd.read_csv(path).filter(regex=f"^(?!.*({'|'.join(_CHANGING)}))")
            found[name] = table.astype(object).fillna("").to_dict("list")
        else:
            # The header's order is arbitrary; the numbers must be the same to the last bit.
            tensors = safetensors.torch.load(path.read_bytes())
            found[name] = {key: value.numpy().tobytes() for key, value in tensors.items()}
    return found
