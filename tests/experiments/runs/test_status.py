"""What others see of a folder: `igr status`, and curves for TensorBoard."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from igr.experiments import cli
from igr.experiments.errors import ConfigError
from igr.experiments.runs import driver, status
from igr.experiments.runs.jobs import locked
from igr.experiments.runs.progress import Board
from igr.experiments.runs.records import RunFolder
from igr.experiments.runs.sweep import Scoring, Sweep
from igr.experiments.runs.tensorboard import Curves
from igr.experiments.training.config import SweepConfig

QUIET = Console(file=io.StringIO())


def sweep(epochs: int) -> Sweep:
    config = SweepConfig(
        epochs=epochs, num_variables=4, train_images=200, temperatures=(0.5, 1.0), seeds=2
    )
    return Sweep(config, (Scoring(False, 5, 5),))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        self.now += 10.0
        return self.now


def said(root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    cli.main(["status", str(root)])
    return capsys.readouterr().out


def test_a_command_is_seen_while_it_works_after_it_stopped_and_not_when_it_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(KeyboardInterrupt), status.published(tmp_path) as path:
        board = Board({"a cell": 100.0, "b": 100.0}, QUIET, clock=Clock(), path=path)
        board.begin("a cell", 100.0)
        board.go_on(2, {"east": 2})
        board.note("a cell", "epoch 3 of 5")
        board.advance("a cell", 50.0)
        text = said(tmp_path, capsys)
        assert "25%, 0 of 2 done" in text
        assert "left (last heard of" in text
        assert "east: 2 tasks" in text
        assert "a cell: epoch 3 of 5" in text
        raise KeyboardInterrupt
    text = said(tmp_path, capsys)
    assert "ago; the same command goes on from there" in text
    assert "a cell" not in text
    with status.published(tmp_path) as path:
        path.write_text("{}")
    assert status.commands(tmp_path) == []
    assert not list(tmp_path.glob("*/*"))


def test_what_is_on_disk_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job, longer = sweep(2), sweep(3)
    driver.run([job], tmp_path, QUIET)
    longer.folder(tmp_path).write_config(longer.config)
    text = said(tmp_path, capsys)
    assert "0 cells done; 1 sweeps trained, 1 begun" in text
    assert "waiting, 0 of 4 runs trained, others saved at epoch 0 of 3" in text
    with locked(tmp_path, longer.name):
        assert f"{longer.name}: in work" in said(tmp_path, capsys)


def test_a_figure_of_fits_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "figures" / "smoke").mkdir(parents=True)
    (tmp_path / "figures" / "smoke" / "figure4.json").write_text("{}")
    assert "0 cells and 1 figures of fits done;" in said(tmp_path, capsys)


def test_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that those see it too who may only read."""
    job = sweep(2)
    job.folder(tmp_path).write_config(job.config)

    def refused(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    with status.published(tmp_path) as path, locked(tmp_path, job.name):
        Board({"a": 10.0}, QUIET, clock=Clock(), path=path).begin("a", 10.0)
        monkeypatch.setattr("filelock.FileLock.acquire", refused)
        monkeypatch.setattr(Path, "mkdir", refused)
        text = said(tmp_path, capsys)
        monkeypatch.undo()
    assert f"{job.name}: in work" in text
    assert "last heard of" in text


@pytest.mark.parametrize("content", ["{}", '{"fraction": "x"}', "[]", "half"])
def test_progress_of_another_form_is_passed_over(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "progress").mkdir()
    (tmp_path / "progress" / "host-1.json").write_text(content)
    assert said(tmp_path, capsys) == "0 cells done; 0 sweeps trained, 0 begun\n"


def test_another_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["status", str(tmp_path)])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_curves_for_tensorboard_are_the_metrics(tmp_path: Path) -> None:
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs TensorBoard"
    )
    job = sweep(3)
    driver.run([job], tmp_path, QUIET, on_file=Curves(tmp_path))
    for result in job.results(tmp_path):
        folder = tmp_path / "tensorboard" / job.name / result.config.name
        events = reader.EventAccumulator(str(folder))
        events.Reload()
        rows = RunFolder(result.run.path).metrics()
        for name in ("elbo", "kl"):
            found = events.Scalars(name)
            assert [event.step for event in found] == [row["epoch"] for row in rows]
            assert [event.value for event in found] == pytest.approx([row[name] for row in rows])


def test_tensorboard_that_is_not_installed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        Curves(tmp_path)


def test_progress_is_json(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    board = Board({"a": 10.0}, QUIET, clock=Clock(), path=path)
    board.begin("a", 10.0)
    assert json.loads(path.read_text())["jobs"] == 1
