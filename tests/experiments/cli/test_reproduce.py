"""What `igr reproduce` keeps: what is finished where another cell fails; with `--again`, what is not run again."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from igr.experiments import cli
from igr.experiments.errors import RecordError
from igr.experiments.paper import cells
from igr.experiments.runs import sweep
from igr.experiments.runs.records import Stack
from left import records

TWO = ["reproduce", "table1", "--scale", "smoke", "--dataset", "mnist", "--row", "igr-i"]
TWO += ["--row", "gs", "--lr", "0.001", "--seeds", "1", "--epochs", "1", "--test-images", "5"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    cli.main([*TWO, "--out", str(root)])
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A folder of two finished cells."""
    return shutil.copytree(made, tmp_path / "root")


def files(root: Path) -> dict[Path, int]:
    """When each record was written."""
    return {path: path.stat().st_mtime_ns for path in root.glob("cells/*")} | {
        path: path.stat().st_mtime_ns for path in root.glob("sweeps/*/runs/*/*")
    }


def test_a_cell_that_fails_hides_no_other(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(stack: Stack, *arguments: object, **others: object) -> None:
        raise RecordError("a reason of its own")

    (failing,) = root.glob("cells/*-gs-*.json")
    for name in cells.read_cell(failing)["sweeps"]:
        shutil.rmtree(root / "sweeps" / name)
    failing.unlink()
    (root / "cells.csv").unlink()
    monkeypatch.setattr(sweep, "train_stack", fail)
    with pytest.raises(SystemExit) as stopped:
        cli.main([*TWO, "--out", str(root)])
    printed, error = capsys.readouterr()
    assert stopped.value.code == 2
    assert error.splitlines()[-1] == "igr: table1 MNIST GS: a reason of its own"
    assert "IGR-I" in printed
    assert "not run" in printed
    assert "igr-i" in (root / "cells.csv").read_text()


def test_nothing_is_collected_of_other_scales_or_into_the_folder_itself(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (root / "cells.csv").read_text()
    for into, message in {
        root: "expected another",
        tmp_path / "into": "no records of scale full",
    }.items():
        with pytest.raises(SystemExit) as stopped:
            cli.main(["collect", str(root), "--into", str(into)])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    assert (root / "cells.csv").read_text() == before
    assert not (tmp_path / "into").exists()


@pytest.fixture
def stop_after_a_cell(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Until it is called, Ctrl-C comes when a cell has been recorded."""
    write = cells.write_json

    def write_and_stop(path: Path, value: Any) -> None:
        write(path, value)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(cells, "write_json", write_and_stop)
    return lambda: monkeypatch.setattr(cells, "write_json", write)


@pytest.mark.parametrize("wrong", [["--workers", "-1"], ["--engine", "rays"], ["--device", "cud"]])
def test_nothing_is_removed_before_everything_is_checked(wrong: list[str], root: Path) -> None:
    before = files(root)
    with pytest.raises(SystemExit):
        cli.main([*TWO, "--again", *wrong, "--out", str(root)])
    assert files(root) == before


def test_stopped_it_goes_on(root: Path, stop_after_a_cell: Callable[[], None]) -> None:
    again = [*TWO, "--again", "--out", str(root)]
    before, wanted = files(root), records(root)
    with pytest.raises(SystemExit) as stopped:
        cli.main(again)
    assert stopped.value.code == 130
    (first,) = root.glob("cells/*.json")
    after = files(root)
    assert not before.items() & after.items()
    stop_after_a_cell()
    cli.main(again)
    new = files(root)
    assert new[first] == after[first]
    kept = {path for path in after if path.parent.parent.name == "runs"}
    assert {path: new[path] for path in kept} == {path: after[path] for path in kept}
    assert records(root) == wanted
    cli.main(again)  # it was finished, so this is another
    assert not new.items() & files(root).items()


def test_sweeps_that_other_cells_name_are_kept(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = [*TWO[:-1], "6"]  # the same runs, scored on another number of images
    cli.main([*other, "--out", str(root)])
    before = {path: time for path, time in files(root).items() if path.name == "metrics.csv"}
    assert len(list(root.glob("cells/*.json"))) == 4
    capsys.readouterr()
    cli.main([*other, "--again", "--out", str(root)])
    assert "since records of other cells name them: digits-" in capsys.readouterr().err
    assert before.items() <= files(root).items()
