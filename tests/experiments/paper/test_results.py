"""Results that come with the package: what is kept of records, and that commands start from it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import igr.experiments
from igr.experiments import cli
from igr.experiments.paper import cells, plan, results
from igr.experiments.paper.figures import bounds_by_temperature
from igr.experiments.paper.plan import Options
from igr.experiments.paper.specs import TABLES
from igr.experiments.runs import sweep

needs_data = pytest.mark.skipif("IGR_DATA" not in os.environ, reason="IGR_DATA is not set")

# A cell of full scale in name alone.
SMALL = [
    *("table1", "figure2", "--scale", "full", "--row", "igr-i", "--dataset", "mnist"),
    *("--temperature", "0.1", "--lr", "0.001", "--seeds", "2", "--epochs", "2"),
    *("--train-images", "200", "--test-images", "10", "--samples", "5"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command wrote."""
    root = tmp_path_factory.mktemp("made")
    cli.main(["reproduce", *SMALL, "--out", str(root)])
    return root


@pytest.fixture(scope="module")
def kept(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is kept of it."""
    into = tmp_path_factory.mktemp("kept") / "results"
    cli.main(["collect", str(made), "--into", str(into)])
    return into


@needs_data
def test_keeps_the_record_the_curve_and_a_row_but_no_weights(made, kept):
    (record,) = cells.read_cells(made)
    assert cells.read_cells(kept) == [record]
    names = {path.name for path in kept.rglob("*") if path.is_file()}
    assert names == {"cells.csv", f"{record['name']}.json", "metrics.csv"}
    (row,) = pd.read_csv(kept / "cells.csv").to_dict("records")
    assert row["bound"] == pytest.approx(sum(run["bound"] for run in record["runs"]) / 2)
    assert (row["paper"], row["paper_sd"]) == TABLES["table1"].rows[0].paper["mnist"]
    assert (row["seeds"], row["epochs"], row["temperature"]) == (2, 2, 0.1)
    assert row["date"] == record["versions"]["date"]
    assert row["command"].split() == ["igr", "reproduce", *SMALL[:1], *SMALL[2:], "--again"]


@needs_data
def test_commands_start_from_them(made, kept, tmp_path, monkeypatch, capsys):
    def train(*args, **kwargs):
        raise AssertionError("trained")

    monkeypatch.setattr(results, "folder", lambda: kept)
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "train_stack", train)
        cli.main(["reproduce", *SMALL, "--out", str(tmp_path)])
    printed, notes = capsys.readouterr()
    (record,) = cells.read_cells(made)
    assert "1 of 1 are results that come with igr; --again runs them" in notes
    assert f"Run on {record['versions']['date']} with igr {record['versions']['igr']}." in printed
    assert cells.read_cells(tmp_path) == [record]
    assert (tmp_path / "figures/full/figure2.svg").exists()  # drawn from the curves that are kept


@needs_data
def test_again_trains_and_scores_anew(made, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "folder", lambda: kept)
    shutil.copytree(made, tmp_path / "out")
    (path,) = (tmp_path / "out" / "cells").glob("*.json")
    record = json.loads(path.read_text())
    bounds = [run["bound"] for run in record["runs"]]
    for run in record["runs"]:
        run["bound"] = 0.0
        (score,) = (tmp_path / "out" / run["run"]).glob("test*.json")
        score.write_text(json.dumps({**json.loads(score.read_text()), "bound": 0.0}))
    path.write_text(json.dumps(record))
    trained = []
    train_stack = sweep.train_stack
    monkeypatch.setattr(
        sweep, "train_stack", lambda *a, **k: (trained.append(1), train_stack(*a, **k))
    )
    cli.main(["reproduce", *SMALL, "--again", "--out", str(tmp_path / "out")])
    (found,) = cells.read_cells(tmp_path / "out")
    assert trained
    assert [run["bound"] for run in found["runs"]] == pytest.approx(bounds, rel=1e-4)


def test_the_table_is_that_of_the_records():
    table = results.folder() / "cells.csv"
    entries = [entry for entry in plan.best_entries(results.folder()) if entry.record is not None]
    if not entries:
        pytest.skip("no results have been committed")
    expected = pd.DataFrame([results.row(entry) for entry in entries])
    pd.testing.assert_frame_equal(
        pd.read_csv(table), expected, check_dtype=False, rtol=1e-12, atol=0
    )
    pd.testing.assert_frame_equal(igr.experiments.results(), expected)


def test_bounds_by_temperature_are_those_of_the_last_rung_that_all_reached():
    def candidate(lr, temperature, epochs, bound):
        return {"lr": lr, "temperature": temperature, "epochs": epochs, "held_out_bound": bound}

    record = {
        "scale": {"epochs": 100},
        "candidates": [
            *(candidate(1e-3, t, 10, -100 - t) for t in (0.5, 0.1)),
            *(candidate(1e-4, t, 10, -100.2) for t in (0.1, 0.5)),
            candidate(1e-3, 0.1, 100, -90.0),
        ],
    }
    first = 10, {0.1: -100.1, 0.5: -100.2}
    assert bounds_by_temperature({"a": record}) == {"a": first}
    longer = [*record["candidates"], *(candidate(1e-3, t, 100, -90.0) for t in (0.1, 0.5))]
    both = {**record, "candidates": longer}
    last = 100, {0.1: -90.0, 0.5: -90.0}
    assert bounds_by_temperature({"b": both}) == {"b": last}
    assert bounds_by_temperature({"a": record, "b": both}) == {"a": first, "b": first}
    later = {**both, "candidates": longer[-2:]}
    assert bounds_by_temperature({"a": record, "c": later}) == {"a": first, "c": last}
    single = {**record, "candidates": record["candidates"][:1]}
    nothing = {**record, "candidates": []}
    assert bounds_by_temperature({"b": both, "d": single, "e": nothing}) == {"b": last}
    assert bounds_by_temperature({"e": nothing}) == {}
    for each in record["candidates"]:
        del each["epochs"]  # as records were before there were rungs
    assert bounds_by_temperature({"a": record}) == {"a": (100, {0.1: -90.0, 0.5: -100.2})}


def test_rows_of_a_grid_of_their_own_take_no_records_of_others():
    """`igr-i` of table 1 and `igr-i+lrs` differ in nothing else, nor `igr-i+unit` of table 2 and `igr-i+sop`."""
    entries = {(e.table.name, e.row.name): e for e in plan.best_entries(results.folder())}
    chosen = [e for e in entries.values() if e.record and (e.row.lrs or e.row.temperatures)]
    if not chosen:
        pytest.skip("no results of such rows have been committed")
    for entry in chosen:
        assert entry.record is not None
        for name, grid in (("lrs", entry.row.lrs), ("temperatures", entry.row.temperatures)):
            assert grid is None or {*entry.record["scale"][name]} <= {*grid}, entry.row.name
    table1 = entries["table1", "igr-i"].record
    assert table1 is None or len(table1["scale"]["lrs"]) == 3
    table2 = entries["table2", "igr-i+unit"].record
    assert table2 is None or len(table2["scale"]["temperatures"]) == 10


def test_results_leave_the_users_plots_alone():
    """In a notebook, another backend of matplotlib would mean no more pictures."""
    code = (
        "import matplotlib; matplotlib.use('svg')\n"
        "import igr.experiments; igr.experiments.results()\n"
        "import igr.experiments.runs.plots\n"
        "assert matplotlib.get_backend() == 'svg'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_pandas_rows_are_dicts(monkeypatch):
    monkeypatch.setattr(results.importlib.util, "find_spec", lambda name: None)
    assert all(isinstance(row, dict) for row in igr.experiments.results())


def test_cells_and_sweeps_have_the_names_that_they_were_recorded_by():
    """A setting whose default is not None would change them, and everything would be run again."""
    planned = {cell.name: cell for _, cell in plan.make_plan([*TABLES], "full", Options()).entries}
    found = [r for r in cells.read_cells(results.folder()) if r["name"] in planned]
    assert found
    for record in found:
        assert planned[record["name"]].final(**record["chosen"]).name == record["sweeps"][-1]
