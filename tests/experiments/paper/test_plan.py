"""`igr reproduce` from end to end at the smallest scale, and its page; what users can get wrong."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from pathlib import Path

import pandas as pd
import pytest

import chromium
from igr.experiments import cli
from igr.experiments.cli import console as consoles
from igr.experiments.cli.reproduce import _footnotes, _print_table
from igr.experiments.errors import ConfigError
from igr.experiments.paper import cells, figures, report, results, specs
from igr.experiments.paper import plan as reproduce
from igr.experiments.paper.plan import Options, make_plan
from igr.experiments.paper.specs import ERRATA, FIGURES, SCALES, TABLES, Row
from igr.experiments.runs import plots, sweep


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of everything at the scale smoke, and what was printed."""
    root = tmp_path_factory.mktemp("smoke")
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        console = consoles.out
        patch.setattr(
            console, "print", lambda *args, **kwargs: printed.append(_render(console, *args))
        )
        cli.main(["reproduce", "all", "--scale", "smoke", "--out", str(root)])
    return root, "\n".join(printed)


def _render(console, *args):
    with console.capture() as captured:
        type(console).print(console, *args, soft_wrap=True)
    return captured.get()


class TestSmoke:
    def test_every_row_has_a_number_beside_the_papers(self, smoke):
        _, printed = smoke
        for table in TABLES.values():
            for row in table.rows:
                lines = [
                    line for line in printed.splitlines() if line.strip().startswith(row.label)
                ]
                assert lines, row.label
                for dataset, (mean, spread) in row.paper.items():
                    assert dataset in table.columns
                    assert any(f"{mean:.2f} ± {spread:.2f}" in line for line in lines)
        for word in ("not available", "not run", "diverged"):
            assert word not in printed

    def test_figures_are_drawn_twice_each(self, smoke):
        root, _ = smoke
        for name in FIGURES:
            png, svg = (root / "figures" / "smoke" / f"{name}.{kind}" for kind in ("png", "svg"))
            assert png.read_bytes().startswith(b"\x89PNG")
            assert "<svg" in svg.read_text()

    def test_records_are_read_by_pandas(self, smoke):
        root, _ = smoke
        cells = pd.read_csv(root / "cells.csv")
        runs = pd.read_csv(root / "results.csv")
        assert set(cells["family"]) == {"igr-i", "igr-planar", "igr-sb", "igr-sb-sharp", "gs"}
        assert cells["bound"].notna().all()
        assert runs["seconds_per_epoch"].gt(0).all()

    def test_a_second_time_nothing_is_run(self, smoke, monkeypatch):
        root, _ = smoke

        def never(*args, **kwargs):
            raise AssertionError("run again")

        monkeypatch.setattr(sweep, "train_stack", never)
        monkeypatch.setattr(figures.FigureJob, "_fitted", never)
        pictures = {path: path.read_bytes() for path in root.glob("figures/*/*.png")}
        cli.main(["reproduce", "all", "--scale", "smoke", "--out", str(root)])
        assert pictures == {path: path.read_bytes() for path in pictures}

    def test_page_is_self_contained_and_complete(self, smoke):
        root, _ = smoke
        cli.main(["report", str(root)])
        page = (root / "report.html").read_text()
        for attribute in re.findall(r'(?:src|href)="([^"]*)"', page):
            assert attribute.startswith(("#", "data:image/svg+xml;base64,")), attribute
        for target in re.findall(r'href="#([^"]*)"', page):
            assert f'id="{target}"' in page, target
        assert page.count("data:image/svg") == len(FIGURES)
        assert "Some of these numbers mean nothing" in page
        assert page.count("Run at scale smoke") == sum(
            isinstance(figure, specs.ApproximationFigure) for figure in FIGURES.values()
        )
        for table in TABLES.values():
            for row in table.rows:
                for mean, spread in row.paper.values():
                    assert f"{mean:.2f} ± {spread:.2f}" in page
        assert "Not run" not in page
        assert 'name="viewport"' in page

    def test_page_fits_phones_and_screens(self, smoke, tmp_path):
        root, _ = smoke
        cli.main(["report", str(root)])
        with chromium.start(tmp_path) as browser:
            assert chromium.overflow(browser, root / "report.html") == [0, 0]


class TestPlan:
    def test_rows_and_data_sets_are_selected(self):
        plan = make_plan(["table1"], "full", Options(rows=("igr-i",), datasets=("mnist",), seeds=1))
        ((entry, cell),) = plan.entries
        assert (entry.row.name, entry.column.dataset) == ("igr-i", "mnist")
        assert cell.final(1e-3, 0.1).config.seeds == 1
        assert cell.scale.epochs == 100
        assert len(cell.temperatures) == 10

    def test_full_scale_is_the_papers_protocol(self):
        ((_, cell),) = make_plan(
            ["table1"], "full", Options(rows=("gs",), datasets=("mnist",))
        ).entries
        for candidate in cell.candidates():
            assert candidate.config.held_out == 10_000
            assert candidate.config.train_images == 0
            assert candidate.scorings[0].samples == 100
        final = cell.final(3e-4, 0.5)
        assert (final.config.seeds, final.config.held_out) == (5, 0)
        assert final.scorings[0] == sweep.Scoring(held_out=False, images=0, samples=1000)
        assert final.config.num_variables * final.config.num_categories == 200

    def test_the_same_cell_of_two_tables_is_run_once(self):
        jobs = make_plan(["table3", "table4"], "full", Options()).jobs()
        names = [job.name for job in jobs]
        assert len(names) == len(set(names))
        assert len(names) == 15 + 2

    def test_the_first_figures_cells_are_table_ones(self):
        table = {job.name for job in make_plan(["table1"], "full", Options()).jobs()}
        figure = {job.name for job in make_plan(["figure2"], "full", Options()).jobs()}
        assert figure
        assert figure <= table

    def test_errata_that_rows_name_are_known(self):
        for table in TABLES.values():
            for row in table.rows:
                assert {*table.errata, *row.errata} <= set(ERRATA)
        for figure in FIGURES.values():
            assert set(figure.errata) <= set(ERRATA)

    def test_a_model_that_is_not_there_is_shown_as_such(self, tmp_path, monkeypatch, capsys):
        row = Row("future", "A future model", {"family": "from-tomorrow"})
        table = dataclasses.replace(TABLES["table2"], rows=(row,))
        monkeypatch.setattr(reproduce, "TABLES", {"table2": table})
        plan = make_plan(["table2"], "smoke", Options())
        assert plan.jobs() == []
        (entry,) = plan.finished(tmp_path)
        _print_table([entry])
        _footnotes([entry])
        printed = capsys.readouterr().out
        assert "not available" in printed
        assert "from-tomorrow" in printed

    def test_unknown_rows_are_refused(self):
        with pytest.raises(ConfigError, match="did you mean 'igr-planar'"):
            make_plan(["table1"], "full", Options(rows=("igr-plana",)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table9"], "did you mean 'table"),
        (["table1", "--scale", "huge"], "scale: expected one of smoke, short, full"),
        (["table1", "--dataset", "minst"], "did you mean 'mnist'"),
        (["table1", "--row", "gumbel"], "row: expected one of"),
        (["table1", "--temperature", "0"], "temperature: expected a positive finite number, got 0"),
        (["table1", "--temperature", "-0.5"], "temperature: expected a positive finite number"),
        (
            ["table1", "--temperature", "1e-17"],
            "temperature: expected a positive finite number above",
        ),
        (
            ["table1", "--temperature", "1", "--temperature", "1.0000001"],
            "temperature: given twice",
        ),
        (["table1", "--seeds", "0"], "seeds: expected a whole number of at least 1"),
        (["table1", "--lr", "0.1", "--lr", "0.1"], "lr: given twice"),
        (["table2", "--dataset", "omniglot"], "nothing to run of table2"),
        (["table2", "figure1", "--dataset", "omniglot"], "nothing to run of table2"),
        (["figure1", "--row", "igr-i"], "row, dataset: figure1 has none to choose from"),
        (["figure1", "--dataset", "mnist"], "row, dataset: figure1 has none to choose from"),
        (["figure1", "--ray-address", "a:1"], "ray-address: expected with --engine ray alone"),
        (["figure1", "--gpus-per-task", "0"], "gpus-per-task: expected with --engine ray alone"),
        (["figure1", "--cpus-per-task", "2"], "cpus-per-task: expected with --engine ray alone"),
        (["table1", "--engine", "rays"], "did you mean 'ray'"),
        (["table1", "--workers", "-1"], "workers: expected a whole number"),
        (
            ["table1", "--scale", "short", "--train-images", "300"],
            "train-images: expected more than the 500 held out, got 300",
        ),
        (["table1", "--scale", "short"], "IGR_DATA: expected a folder that holds"),
    ],
)
def test_what_users_get_wrong_is_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("IGR_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setattr(results, "folder", lambda: tmp_path / "none")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["reproduce", "--scale", "smoke", *arguments, "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["reproduce", "report"])
def test_records_of_another_version_are_one_line(command, tmp_path, capsys):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "old.json").write_text(json.dumps({"format": 0, "name": "old"}))
    words = {"reproduce": ["reproduce", "table1", "--out", str(tmp_path)]}
    with pytest.raises(SystemExit) as stopped:
        cli.main(words.get(command, ["report", str(tmp_path)]))
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "written by another version of igr" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("make", [True, False])
def test_a_report_of_nothing_is_one_line(make, tmp_path, capsys):
    folder = tmp_path / "empty"
    if make:
        folder.mkdir()
    with pytest.raises(SystemExit) as stopped:
        cli.main(["report", str(folder)])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_ray_that_is_not_installed_is_one_line(tmp_path, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as stopped:
        cli.main(
            ["reproduce", "figure4", "--scale", "smoke", "--engine", "ray", "--out", str(tmp_path)]
        )
    assert stopped.value.code == 2
    assert "pip install ray" in capsys.readouterr().err


@pytest.mark.slow
def test_worker_processes_leave_the_same_records(tmp_path):
    common = ["reproduce", "table2", "--scale", "smoke"]
    for workers in ("1", "2"):
        cli.main([*common, "--workers", workers, "--out", str(tmp_path / workers)])
    one, two = (cells.read_cells(tmp_path / workers) for workers in ("1", "2"))
    assert [c["runs"][0]["bound"] for c in one] == [c["runs"][0]["bound"] for c in two]


def _entry(row: str, seconds: float, **scale: object) -> reproduce.Entry:
    table = TABLES["table1"]
    record = {
        "scale": {"name": "short", "epochs": 5, "train_images": 0, **scale},
        "runs": [{"seconds_per_epoch": seconds, "side_by_side": 2}],
    }
    found = next(each for each in table.rows if each.name == row)
    return reproduce.Entry(table, found, specs.COLUMNS["mnist"], record)


def test_times_are_compared_where_the_set_up_is_the_same():
    entries = [_entry("igr-i", 1.1), _entry("igr-planar", 1.3), _entry("gs", 1.0)]
    entries += [_entry("gs+sl", 9.0), _entry("igr-sb", 9.0, epochs=7), _entry("gs", 9.0, epochs=1)]
    (timing,) = reproduce.timings(entries)
    ratios = {entry.row.name: round(timing.ratio(entry), 6) for entry in timing.entries}
    assert ratios == {"igr-i": 1.1, "igr-planar": 1.3, "gs": 1.0}


def test_a_page_counts_the_epochs_that_were_trained(tmp_path, monkeypatch):
    table = TABLES["table1"]
    cell = cells.cell_of(table, table.rows[0], specs.COLUMNS["mnist"], SCALES["smoke"])
    runs = [dict.fromkeys(("bound", "released_estimate", "elbo", "kl"), -1.0) | {"samples": 5}]
    runs[0] |= {"seconds_per_epoch": 3600.0, "side_by_side": 1}
    made = {"igr": "", "torch": "", "python": "", "system": "", "machine": "", "threads": 1}
    record = {
        "name": cell.name,
        **cell.identity(),
        "runs": runs,
        "candidates": [],
        "versions": made,
    }
    record |= {"settings": {"times_epochs": 3}, "chosen": {"temperature": 0.1, "lr": 1e-3}}
    entry = reproduce.Entry(table, table.rows[0], specs.COLUMNS["mnist"], record)
    monkeypatch.setattr(reproduce, "check_root", lambda root: None)
    monkeypatch.setattr(reproduce, "best_entries", lambda root: [entry])
    monkeypatch.setattr(report, "_pictures", lambda root, entries: [])
    hours = 3 * SCALES["smoke"].epochs
    assert f"trained for {hours:.2f} hours in all" in " ".join(report.render(tmp_path).split())


def test_the_most_complete_record_is_shown():
    def record(*trained, seeds=5, **changes):
        full = {"name": "full", "stand_in": None, "epochs": 100, "train_images": 0}
        scale = {**full, "test_images": 0, "temperatures": [0.1], "lrs": [1e-3], **changes}
        candidates = [{"epochs": epochs} for epochs in trained]
        return {"scale": scale, "runs": [{}] * seeds, "candidates": candidates}

    in_order = [
        record(stand_in="digits"),
        record(name="short", train_images=10_000),
        record(name="full", epochs=5),
        record(test_images=500),
        record(),
        record(100, 100, seeds=1, temperatures=[0.1, 0.5]),
        record(temperatures=[0.1, 0.5]),
        record(10, 10, 100, temperatures=[0.1, 0.5]),
        record(100, 100, temperatures=[0.1, 0.5]),
    ]
    shuffled = random.Random(0).sample(in_order, len(in_order))
    assert sorted(shuffled, key=reproduce._worth) == in_order


def test_a_family_has_its_colour_in_every_figure():
    entries = reproduce.best_entries(results.folder())
    for name, figure in FIGURES.items():
        wanted = {
            "GS": "gs",
            "IGR-I": "igr-i",
            "IGR-SB": "igr-sb",
            "IGR-SB sharpened": "igr-sb-sharp",
        }
        if isinstance(figure, specs.TableFigure):  # without its first row, others would come first
            shown = [entry for entry in entries if entry.row.name != "igr-i"]
            axes = reproduce.picture(figure, results.folder(), SCALES["full"], shown).axes
            labelled = [(line.get_label().split(" (")[0], line) for line in axes[0].lines]
        else:
            wanted |= {"IGR-SB, sharpened": "igr-sb-sharp", "IGR-SB, paper’s map": "igr-sb"}
            picture = reproduce.picture(figure, results.folder(), SCALES["full"], [])
            rows = zip(figure.rows, picture.axes[::2], strict=True)
            labelled = [
                (fits[-1].label.partition(":")[0].partition(", K")[0], axes.lines[len(fits) - 1])
                for fits, axes in rows
            ]
        labelled = [(label, line) for label, line in labelled if label in wanted]
        assert labelled, name
        for label, line in labelled:
            assert line.get_color() == plots.colour_of(wanted[label]), (name, label)


def test_scales_are_in_order():
    assert list(SCALES) == ["smoke", "short", "full"]
    assert specs.SCALES["full"].seeds == 5


class TestFits:
    @pytest.mark.parametrize(
        ("family", "how", "target"),
        [
            ("igr-i", "hard", "ten-categories"),
            ("igr-i", "mean", "ten-categories"),
            ("igr-sb-sharp", "hard", "binomial-12-0.3"),
            ("countable", "hard", "negative-binomial-50-0.6"),
            ("countable-paper", "mean", "poisson-50"),
            ("gs", "hard", "ten-categories"),
            ("gs", "mean", "binomial-12-0.3"),
        ],
    )
    def test_descent_brings_them_closer(self, family, how, target):
        import torch

        wanted = figures.TARGETS[target]
        fit = figures.FITS[family](wanted, specs.Approximation("", family, how, 0.25))
        fit.lr = 0.1
        probs = wanted.probs(wanted.size or 400)
        padded = torch.nn.functional.pad(probs, (0, 400 - len(probs)))

        def distance():
            with torch.no_grad():
                p = torch.bincount(fit.draw(4000), minlength=400) / 4000
                return 0.5 * (p - padded).abs().sum().item()

        before = distance()
        fit.descend(100, lambda: None)
        assert distance() < 0.4 * before

    def test_targets_sum_to_one(self):
        for target in figures.TARGETS.values():
            assert abs(float(target.probs(target.size or 400).sum()) - 1) < 1e-6

    def test_negative_binomial_has_the_papers_mean(self):
        import torch

        p = figures.TARGETS["negative-binomial-50-0.6"].probs(400)
        mean = float((p * torch.arange(400)).sum())
        assert mean == pytest.approx(50 * 0.4 / 0.6)
