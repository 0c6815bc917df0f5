"""Training curves for TensorBoard, as they grow."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Any

from igr.experiments.errors import ConfigError


class Curves:
    """Writes metrics to ``DIR/tensorboard`` as well; `igr.experiments.runs.driver.run` tells it of files."""

    def __init__(self, root: Path) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise ConfigError("tensorboard: it is not installed: pip install tensorboard")
        self.root = root
        self.open: dict[Path, tuple[Any, int]] = {}  # by run: writer, epochs written

    def __call__(self, path: Path, content: bytes | str) -> None:
        if path.name == "metrics.csv" and isinstance(content, str):
            self._write(path.parent, list(csv.DictReader(content.splitlines())))
        elif path.name == "weights.safetensors" and path.parent in self.open:
            self.open.pop(path.parent)[0].close()

    def _write(self, run: Path, rows: list[dict[str, str]]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if run not in self.open:
            _, sweep, _, name = run.relative_to(self.root).parts
            folder = self.root / "tensorboard" / sweep / name
            self.open[run] = (
                SummaryWriter(str(folder), purge_step=0),
                0,
            )  # whatever an earlier command wrote
        writer, written = self.open[run]
        for row in rows[written:]:
            epoch = int(row.pop("epoch"))
            for name, value in row.items():
                writer.add_scalar(name, float(value), epoch)
        writer.flush()
        self.open[run] = writer, len(rows)
