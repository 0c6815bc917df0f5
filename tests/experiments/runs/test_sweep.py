"""Sweeps and cells: what is chosen, that nothing is run twice, and that a kill changes nothing."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import multiprocessing
import random
import shutil
import signal
import time
from pathlib import Path
from typing import get_type_hints

import pandas as pd
import pytest
import torch
from rich.console import Console

from igr.experiments import cli, data
from igr.experiments.cli.sweep import _values
from igr.experiments.errors import RecordError
from igr.experiments.files import Busy
from igr.experiments.models.families import FAMILIES
from igr.experiments.paper import cells
from igr.experiments.paper.cells import Cell, ahead, cell_of, read_cells, write_tables
from igr.experiments.paper.specs import CHOICES, COLUMNS, SCALES, TABLES
from igr.experiments.runs import driver, sweep, train
from igr.experiments.runs.driver import Failed
from igr.experiments.runs.engines import Here
from igr.experiments.runs.jobs import Job, locked
from igr.experiments.runs.records import Stack, SweepFolder
from igr.experiments.runs.stopping import Interrupted
from igr.experiments.runs.sweep import Scoring, Sweep
from igr.experiments.training import compute
from igr.experiments.training.config import RunConfig, SweepConfig
from igr.experiments.training.trainer import StackTrainer
from left import records
from tiny import TINY


def tiny(**settings: object) -> Cell:
    """A cell of two temperatures, two learning rates and two seeds on a few digits."""
    return Cell("mnist", {"family": "igr-i", **settings}, TINY, TINY.temperatures, TINY.lrs)


def run(root: Path, *jobs: Job) -> None:
    driver.run(jobs, root, Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the tiny cell has been run, never disturbed."""
    root = tmp_path_factory.mktemp("done")
    run(root, tiny())
    write_tables(root)
    return root


class TestCell:
    def test_chooses_the_best_bound_on_held_out_images(self, done):
        record = read_cells(done)[0]
        best = max(record["candidates"], key=lambda c: c["held_out_bound"])
        assert len(record["candidates"]) == 4
        assert record["chosen"] == {"lr": best["lr"], "temperature": best["temperature"]}
        for candidate in tiny().candidates():
            for result in candidate.results(done):
                (score,) = result.scores
                assert score["images"] == 20
                assert score["bound"] in [c["held_out_bound"] for c in record["candidates"]]

    def test_reports_the_seeds_trained_anew_on_all_images(self, done):
        record = read_cells(done)[0]
        final = tiny().final(**record["chosen"])
        assert final.config.held_out == 0
        assert [run["seed"] for run in record["runs"]] == [0, 1]
        for reported, result in zip(record["runs"], final.results(done), strict=True):
            assert reported["bound"] == result.scores[0]["bound"]
            assert (reported["images"], reported["samples"]) == (10, 10)

    def test_candidates_train_without_the_held_out_images(self):
        cell, train = tiny(), data.load("digits").train
        images, held_out = sweep.split_images(cell.candidates()[0].config)
        assert torch.equal(torch.cat([images, held_out]), train[:120])
        assert len(held_out) == 20
        assert torch.equal(sweep.split_images(cell.final(1e-3, 0.1).config)[0], train[:120])

    def test_choosing_never_reads_the_test_images(self, tmp_path, monkeypatch):
        def test(self):
            raise AssertionError("test images were read")

        sweep._dataset.cache_clear()
        monkeypatch.setattr(data.Dataset, "test", property(test))
        run(tmp_path, *tiny().candidates())
        with pytest.raises(Failed, match="test images"):
            run(tmp_path, tiny())
        sweep._dataset.cache_clear()

    def test_a_diverged_candidate_is_not_chosen(self, done, tmp_path):
        root = tmp_path / "copy"
        shutil.copytree(done, root)
        cell, record = tiny(), read_cells(done)[0]
        cell.path(root).unlink()
        for candidate in cell.candidates():
            for result in candidate.results(root):
                path = result.run.path / f"{candidate.scorings[0].name}.json"
                score = json.loads(path.read_text())
                if (result.config.lr, result.config.temperature) == tuple(
                    record["chosen"].values()
                ):
                    path.write_text(json.dumps({**score, "bound": math.nan}))
        run(root, cell)
        others = [
            c
            for c in record["candidates"]
            if {k: c[k] for k in record["chosen"]} != record["chosen"]
        ]
        best = max(others, key=lambda c: c["held_out_bound"])
        chosen = read_cells(root)[0]["chosen"]
        assert chosen == {"lr": best["lr"], "temperature": best["temperature"]}

    def test_one_candidate_leaves_nothing_to_choose(self):
        cell = dataclasses.replace(tiny(), temperatures=(0.3,), lrs=(1e-3,))
        assert cell.candidates() == []

    def test_more_seeds_use_the_candidates_that_are_there(self):
        more = dataclasses.replace(tiny(), scale=dataclasses.replace(TINY, seeds=5))
        assert more.name != tiny().name
        assert [s.name for s in more.candidates()] == [s.name for s in tiny().candidates()]

    @pytest.mark.parametrize("setting", [{"family": "nonsense"}, {"colour": "red"}])
    def test_says_what_it_cannot_run(self, setting):
        problem = tiny(**setting).problem()
        assert problem is not None
        assert next(iter(setting)) in problem or "colour" in problem

    def test_the_curve_is_recorded(self, tmp_path):
        cell = dataclasses.replace(tiny(), temperatures=(0.3,), lrs=(1e-3,), curve=True)
        run(tmp_path, cell)
        (final,) = (cell.final(1e-3, 0.3),)
        for result in final.results(tmp_path):
            curve = [row["test_elbo"] for row in result.metrics]
            assert len(curve) == 3
            assert all(math.isfinite(value) for value in curve)
            assert (
                abs(curve[-1] - result.metrics[-1]["elbo"]) < 10
            )  # nats: train and test are alike

    def test_the_curve_changes_no_weights(self, tmp_path):
        plain = dataclasses.replace(tiny(), temperatures=(0.3,), lrs=(1e-3,))
        with_curve = dataclasses.replace(plain, curve=True)
        run(tmp_path, plain, with_curve)
        weights = [
            result.run.weights()
            for cell in (plain, with_curve)
            for result in cell.final(1e-3, 0.3).results(tmp_path)[:1]
        ]
        for name, value in weights[0].items():
            assert torch.equal(value, weights[1][name])


HALVING = dataclasses.replace(TINY, epochs=10, rungs=CHOICES["halving"])


def halved(**wishes: object) -> Cell:
    """A cell of six temperatures and two learning rates that chooses by halving."""
    scale = dataclasses.replace(HALVING, **wishes)
    return Cell("mnist", {"family": "igr-i"}, scale, (0.05, 0.1, 0.3, 0.5, 1.0, 2.0), TINY.lrs)


class Counting(Here):
    """Tells how much was done."""

    def __init__(self):
        super().__init__()
        self.told = {"advance": 0.0, "skip": 0.0}

    def start(self, tell, stop):
        def counted(key, name, *arguments):
            if name in self.told:
                self.told[name] += arguments[0]
            tell(key, name, *arguments)

        super().start(counted, stop)


@pytest.fixture(scope="module")
def halving(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float], list[int]]:
    """A folder where that cell has been run, what was told of it, and how many runs each epoch trained."""
    root, engine, epochs = tmp_path_factory.mktemp("halved"), Counting(), []
    train_epoch = StackTrainer.train_epoch

    def counted(self, *args):
        epochs.append(len(self.runs))
        return train_epoch(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "CLOSE", 0.0)
        patch.setattr(StackTrainer, "train_epoch", counted)
        driver.run([halved()], root, Console(file=io.StringIO()), engine)
    return root, engine.told, epochs


@pytest.fixture
def halved_once(halving: tuple[Path, dict[str, float], list[int]]) -> Path:
    return halving[0]


class TestHalving:
    @pytest.fixture(autouse=True)
    def none_is_close(self, monkeypatch):
        """As if all differed by more than is close; after so few steps they don't."""
        monkeypatch.setattr(cells, "CLOSE", 0.0)

    def test_what_is_close_goes_on(self, monkeypatch):
        monkeypatch.setattr(cells, "CLOSE", 0.5)
        bounds = {0.1: -100.4, 0.3: -100.0, 0.5: -101.0, 0.7: -100.49, 1.0: -100.51}
        assert ahead(bounds, 1) == [0.1, 0.3, 0.7]
        assert ahead(bounds, 2) == [0.1, 0.3, 0.7, 1.0]
        assert ahead(bounds, 9) == list(bounds)

    def test_what_diverged_is_never_close(self):
        bounds = {0.1: -math.inf, 0.3: -100.0, 0.5: -math.inf, 0.7: -math.inf}
        assert ahead(bounds, 1) == [0.3]
        assert ahead(bounds, 2) == [0.1, 0.3]

    def test_cells_send_on_what_is_close(self, tmp_path, monkeypatch):
        """Where all are, all are trained to the end, and the best of all is chosen."""
        monkeypatch.setattr(cells, "CLOSE", 1e9)
        run(tmp_path, halved())
        (record,) = read_cells(tmp_path)
        ends = [c for c in record["candidates"] if c["epochs"] == 10]
        assert len(ends) == 2 * 6
        best = max(ends, key=lambda c: c["held_out_bound"])
        assert record["chosen"] == {"lr": best["lr"], "temperature": best["temperature"]}
        assert record["name"] == halved().name

    def test_the_better_go_on_within_each_learning_rate(self, halved_once):
        (record,) = read_cells(halved_once)
        for lr in TINY.lrs:
            rungs = [
                {
                    c["temperature"]: c["held_out_bound"]
                    for c in record["candidates"]
                    if c["lr"] == lr and c["epochs"] == epochs
                }
                for epochs in (1, 3, 10)
            ]
            assert [len(rung) for rung in rungs] == [6, 2, 2]
            for rung, following in itertools.pairwise(rungs):
                worst = min(rung[t] for t in following)
                assert sum(bound > worst for bound in rung.values()) < len(following)
        best = max(
            (c for c in record["candidates"] if c["epochs"] == 10),
            key=lambda c: c["held_out_bound"],
        )
        assert record["chosen"] == {"lr": best["lr"], "temperature": best["temperature"]}
        assert record["scale"]["rungs"] == [[0.1, 1 / 3], [0.3, 1 / 10]]

    def test_runs_that_went_on_are_those_trained_at_once(self, halved_once, tmp_path):
        (record,) = read_cells(halved_once)
        plain = dataclasses.replace(halved(rungs=()), lrs=(1e-3,))
        (candidates,) = plain.candidates()
        run(tmp_path, candidates)
        whole = {r.config.temperature: r for r in candidates.results(tmp_path)}
        last = [
            s
            for s in halved().candidates(
                lambda s, n: [
                    c["temperature"]
                    for c in record["candidates"]
                    if c["lr"] == s.config.lr and c["epochs"] == 10
                ]
            )
            if s.config.lr == 1e-3
        ][-1]
        for result in last.results(halved_once):
            other = whole[result.config.temperature]
            for name, value in result.run.weights().items():
                torch.testing.assert_close(value, other.run.weights()[name], rtol=1e-3, atol=1e-5)
            assert [row["elbo"] for row in result.metrics] == pytest.approx(
                [row["elbo"] for row in other.metrics], rel=1e-4
            )

    def test_trains_only_what_is_new(self, halving):
        _, _, epochs = halving
        assert sum(epochs) == 2 * (6 * 1 + 2 * 2 + 2 * 7) + 2 * 10

    def test_is_expected_to_take_what_it_does(self, halving):
        """A rung goes on from the one before, so that its first epochs are no work."""
        _, told, _ = halving
        cell = halved()
        done = [*cell.candidates(), cell.final(cell.lrs[0], cell.temperatures[0])]
        expected = sum(sweep.units for sweep in done)
        assert told == {"advance": pytest.approx(expected, rel=1e-6), "skip": 0.0}
        assert 1 < cell.units / expected < 1.3  # what is close is counted on

    def test_only_what_was_trained_to_the_end_is_chosen(self, halved_once, tmp_path):
        root, cell = tmp_path / "copy", halved()
        shutil.copytree(halved_once, root)
        (record,) = read_cells(root)
        cell.path(root).unlink()
        other = next(
            {"lr": c["lr"], "temperature": c["temperature"]}
            for c in record["candidates"]
            if c["epochs"] == 10 and c["temperature"] != record["chosen"]["temperature"]
        )
        first = next(s for s in cell.candidates() if s.config.lr == other["lr"])
        for result in first.results(root):
            if result.config.temperature == other["temperature"]:
                path = result.run.path / f"{first.scorings[0].name}.json"
                path.write_text(json.dumps({**json.loads(path.read_text()), "bound": 0.0}))
        run(root, cell)
        assert read_cells(root)[0]["chosen"] == record["chosen"]

    def test_leaves_no_states(self, halved_once):
        assert not list(halved_once.glob("sweeps/*/state/*.safetensors"))

    def test_at_least_three_remain_before_the_end(self):
        scale = dataclasses.replace(SCALES["full"])
        ten = scale.temperatures
        assert Cell("mnist", {}, scale, ten, (1e-4, 3e-4, 1e-3)).rungs() == [
            (10, 4),
            (30, 1),
            (100, 1),
        ]
        assert Cell("mnist", {}, scale, ten, (1e-3,)).rungs() == [(10, 4), (30, 3), (100, 1)]

    def test_both_shows_what_halving_would_have_chosen(self, halved_once, tmp_path):
        cell = halved(rungs=CHOICES["both"])
        run(tmp_path, cell)
        (both,), (record,) = read_cells(tmp_path), read_cells(halved_once)
        scored = {
            (c["lr"], c["temperature"], c["epochs"]): c["held_out_bound"]
            for c in both["candidates"]
        }
        assert len(scored) == 2 * 6 * 3
        for c in record["candidates"]:
            assert scored[c["lr"], c["temperature"], c["epochs"]] == pytest.approx(
                c["held_out_bound"], rel=1e-4
            )

    def test_the_names_of_cells_that_choose_among_all_are_as_they_were(self):
        assert "rungs" not in tiny().identity()["scale"]
        assert halved().name != halved(rungs=()).name


def test_every_row_of_every_table_can_be_run():

    problems = [
        f"{cell.title}: {problem}"
        for scale in SCALES.values()
        for table in TABLES.values()
        for row in table.rows
        for column in table.columns
        if (problem := (cell := cell_of(table, row, COLUMNS[column], scale)).problem())
    ]
    assert problems == []


def test_tables_are_read_by_pandas(done):
    runs, cells = pd.read_csv(done / "results.csv"), pd.read_csv(done / "cells.csv")
    assert len(runs) == 4 + 2
    assert runs["test_bound"].notna().sum() == 2
    assert runs["held_out_bound"].notna().sum() == 4
    (record,) = read_cells(done)
    mean = sum(run["bound"] for run in record["runs"]) / 2
    assert cells["bound"][0] == pytest.approx(mean)
    assert cells["temperature"][0] == record["chosen"]["temperature"]


def test_what_is_done_is_not_run_again(done, monkeypatch):
    def train(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(sweep, "train_stack", train)
    run(done, tiny())


def test_a_held_lock_is_passed_over_and_waited_for(tmp_path):
    job = tiny()
    with locked(tmp_path, job.name), pytest.raises(Busy):
        next(job.work(tmp_path))


def test_a_stop_keeps_what_was_finished(tmp_path):
    def stop(path: Path, content: object) -> None:
        if path.suffix == ".safetensors":
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        driver.run([tiny()], tmp_path, Console(file=io.StringIO()), on_file=stop)
    assert list((tmp_path / "sweeps").glob("*/state/*.safetensors"))
    run(tmp_path, tiny())
    assert read_cells(tmp_path)


def test_records_of_another_version_are_refused(done, tmp_path):
    (tmp_path / "cells").mkdir()
    path = tmp_path / "cells" / "a.json"
    path.write_text(json.dumps({**read_cells(done)[0], "format": 99}))
    with pytest.raises(RecordError, match="another version"):
        read_cells(tmp_path)


def test_a_state_with_an_estimator_for_each_run_is_refused(tmp_path):
    """As version 0.1 left them; alone it would be taken for damaged, or a run's for another's."""
    stack = Stack(SweepFolder(tmp_path), [RunConfig(family="gs", estimator="relax")])
    stack.path.parent.mkdir()
    stack.save({"epoch": torch.tensor(1), "parameter.estimator.0.log_temperature": torch.ones(())})
    with pytest.raises(RecordError, match=r"^\S+: written by another version of igr; delete it"):
        stack.load()


class TestGrid:
    def test_every_combination(self):
        sweeps = sweep.grid(
            {
                "family": ["igr-i", "gs"],
                "lr": [1e-3, 1e-2],
                "temperature": [0.1, 0.5],
                "seeds": [3],
            },
            samples=10,
        )
        assert len(sweeps) == 4
        assert all(len(each.config.runs()) == 6 for each in sweeps)
        assert len({each.name for each in sweeps}) == 4

    def test_the_learning_rate_suits_the_data(self):
        def lrs(**vary):
            return [each.config.lr for each in sweep.grid(vary, samples=1)]

        assert lrs() == [3e-3]
        assert lrs(dataset=["digits", "mnist", "omniglot"]) == [3e-3, 3e-4, 3e-4]
        assert lrs(dataset=["digits", "mnist"], lr=[1e-2]) == [1e-2, 1e-2]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (["temperature=0.1,-1"], "temperature: expected a positive finite number, got -1"),
            (["temperature=0.1,0"], "temperature: expected a positive finite number, got 0"),
            (["temperature=warm"], "temperature: expected a number, got 'warm'"),
            (["temprature=0.1"], "temprature: no such setting"),
            (["epochs=1.5"], "epochs: expected a whole number"),
            (["family=igr-j"], "did you mean 'igr-i'"),
            (["lr=1e-3,1e-3"], "lr: given twice"),
            (["lr"], "expected NAME=VALUE"),
            (["lr=1", "lr=2"], "lr: given twice"),
            (["seeds=1,2"], "seeds: expected one number"),
            (["seed=1"], "seed: no such setting"),
            (["dataset=mnits"], "did you mean 'mnist'"),
            (
                ["dataset=fashion-mnist"],
                "decoder: bernoulli needs a binary data set, and fashion-mnist is not; expected one of gaussian,",
            ),
            (
                ["epochs=1", "--test-images", "500"],
                "test-images: expected at most the 297 of digits, got 500",
            ),
            (["train_images=1501"], "train-images: expected at most the 1500 of digits, got 1501"),
            (
                ["train_images=300", "held_out=300"],
                "train-images: expected more than the 300 held out, got 300",
            ),
            (["held_out=1500"], "held-out: expected fewer than the 1500 training images, got 1500"),
            (
                ["train_images=300", "held_out=250"],
                "batch-size: expected at most the 50 images to train on (300 less 250 held out), got 100",
            ),
        ],
    )
    def test_bad_grids_get_one_line(self, settings, message, tmp_path, capsys):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["sweep", *settings, "--out", str(tmp_path / "out")])
        error = capsys.readouterr().err
        assert stopped.value.code == 2
        assert message in error
        assert len(error.splitlines()) == 1
        assert not list(tmp_path.glob("out/sweeps/*"))

    def test_command(self, tmp_path, capsys):
        arguments = ["sweep", "temperature=0.1,0.5", "epochs=1", "train_images=100", "lr=1e-3,1e-2"]
        options = ["--samples", "5", "--test-images", "5", "--out", str(tmp_path)]
        cli.main([*arguments, *options])
        printed = capsys.readouterr().out
        assert "temperature" in printed
        assert "lr" in printed
        rows = pd.read_csv(tmp_path / "results.csv")
        assert len(rows) == 4
        assert sorted(set(rows["lr"])) == [0.001, 0.01]

    @pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(RunConfig)])
    def test_every_setting_is_read_as_what_it_is(self, name):
        hint, default = get_type_hints(RunConfig)[name], getattr(RunConfig(), name)
        value = 0.5 if default is None else default
        (read,) = _values([f"{name}={str(value).lower()}"])[name]
        assert (read, type(read)) == (value, type(value))
        assert isinstance(read, hint)

    def test_one_that_fails_hides_no_other(self, tmp_path, capsys, monkeypatch):
        train_stack = sweep.train_stack

        def train(stack, *arguments, **others):
            if stack.runs[0].held_out == 50:
                raise RecordError("a reason of its own")
            return train_stack(stack, *arguments, **others)

        monkeypatch.setattr(sweep, "train_stack", train)
        settings = ["held_out=0,50,100", "epochs=1", "train_images=200"]
        with pytest.raises(SystemExit) as stopped:
            cli.main(["sweep", *settings, "--samples", "5", "--out", str(tmp_path)])
        assert stopped.value.code == 2
        printed, error = capsys.readouterr()
        assert error.splitlines()[-1] == "igr: digits igr-i held_out=50: a reason of its own"
        firsts = [(line.split() or [""])[0] for line in printed.splitlines()]
        shown = [word for word in firsts if word.isdigit()]
        assert shown == ["0", "100"]  # and not one row that takes them for two seeds
        assert {*pd.read_csv(tmp_path / "results.csv")["held_out"]} == {0, 100}


def test_a_data_set_that_is_too_small_is_named(tmp_path):
    config = dataclasses.replace(tiny().final(1e-3, 0.1).config, train_images=5000)
    with pytest.raises(Failed, match="train-images: expected at most the 1500 of digits"):
        run(tmp_path, Sweep(config, (Scoring(False, 5, 5),)))


def test_recovering_probabilities_takes_its_time_whatever_the_samples():
    def seconds(family, samples):
        config = SweepConfig(dataset="mnist", families=(family,))
        return sweep.expected(config, [Scoring(False, 0, samples)])[1]

    for samples in (1, 1000):
        beyond = {f: seconds(f, samples) - seconds("gs", samples) for f in FAMILIES}
        assert {f: round(each) for f, each in beyond.items() if each} == {
            "igr-planar": 17,
            "igr-sb": 12,
            "igr-sb-sharp": 8,
        }


def test_compiling_is_said_once_and_where_it_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(compute, "WORTH_COMPILING", 0.0)
    monkeypatch.setattr(compute, "no_compiler", lambda: None)
    monkeypatch.setattr(StackTrainer, "_by_compiler", lambda self: self._by_autograd)
    common = {"epochs": [1], "train_images": [100], "num_variables": [3], "family": ["gs"]}
    for estimator, times in (("relax", 0), ("pathwise", 1)):
        jobs = sweep.grid({**common, "estimator": [estimator], "lr": [1e-3, 1e-2]}, samples=1)
        printed = io.StringIO()
        engine = Here(compute.Compute(compiled=None))
        driver.run(jobs, tmp_path, Console(file=printed, width=200), engine)
        assert printed.getvalue().count("training steps are compiled") == times


def test_missing_data_lose_nothing(done, tmp_path, monkeypatch):
    monkeypatch.setenv("IGR_DATA", str(tmp_path / "nowhere"))
    before = records(done)
    cell = dataclasses.replace(tiny(), scale=dataclasses.replace(TINY, stand_in=None))
    sweep._dataset.cache_clear()
    with pytest.raises(Failed, match="IGR_DATA"):
        run(done, tiny(), cell)
    assert records(done) == before


def _work(root: Path) -> None:
    """What the processes below do, saving after every epoch: so short a run would else never save."""
    torch.set_num_threads(1)
    train._SAVING_SHARE = math.inf
    run(root, tiny())


def _work_and_log(root: Path, log: Path) -> None:
    """The same, noting which stacks this process trains."""
    train_stack = sweep.train_stack

    def noted(stack, *args, **kwargs):
        with log.open("a") as file:
            file.write(f"{stack.path.stem}\n")
        train_stack(stack, *args, **kwargs)

    sweep.train_stack = noted
    _work(root)


@pytest.fixture(scope="module")
def processes():
    """Starts processes by forking one that has imported everything and computed nothing."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(
        ["igr.experiments.runs.sweep", "torch._dynamo", "sklearn.datasets"]
    )
    return found


KILLS_IN_A_ROUND = 5
PATIENCE = 240.0  # seconds; a run of a second or two that takes longer hangs


def finished(process: multiprocessing.process.BaseProcess) -> None:
    """Wait until a process ends of itself, and without an error."""
    process.join(timeout=PATIENCE)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode == 0


@pytest.mark.parametrize("wanted_kills", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_the_records_are_the_same(done, tmp_path, processes, wanted_kills):
    # The moments are spread over the time that the whole takes here. A round ends undisturbed after
    # a few kills: how much a killed process had saved depends on the machine, the test's end must not.
    wanted = records(done)
    wanted = {k: v for k, v in wanted.items() if not k.endswith(("results.csv", "cells.csv"))}
    for target, arguments in ((int, ()), (_work, (tmp_path / "whole",))):
        start = time.monotonic()
        process = processes.Process(target=target, args=arguments)
        process.start()
        finished(process)
        duration = time.monotonic() - start
    moments = random.Random(wanted_kills)
    kills = rounds = 0
    while kills < wanted_kills and rounds < 2 * wanted_kills:
        root = tmp_path / f"round-{rounds}"
        rounds += 1
        for _ in range(min(KILLS_IN_A_ROUND, wanted_kills - kills)):
            process = processes.Process(target=_work, args=(root,))
            process.start()
            process.join(timeout=moments.uniform(0, 0.7 * duration))
            process.kill()
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL)
            kills += process.exitcode == -signal.SIGKILL
        process = processes.Process(target=_work, args=(root,))
        process.start()
        finished(process)
        found = records(root)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert found[name] == value, name
        assert not list(root.rglob("*.tmp")), "temporary files were left"
    assert kills == wanted_kills


def test_what_kills_left_of_half_written_files_is_removed(tmp_path):
    """Wherever a sweep writes: one kill in thousands comes while its settings are written."""
    cell = dataclasses.replace(tiny(), temperatures=(0.3,), lrs=(1e-3,))
    final = cell.final(1e-3, 0.3)
    folder = final.folder(tmp_path)
    (first, *_) = final.config.runs()
    stack = Stack(folder, final.config.runs())
    for path in (
        folder.path / "config.json",
        folder.run(first).path / "weights.safetensors",
        stack.path,
        cell.path(tmp_path),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / f".{path.name}.0123456789ab.tmp").write_text("half")
    run(tmp_path, cell)
    assert not list(tmp_path.rglob("*.tmp"))


def test_two_processes_never_do_the_same_run(done, tmp_path, processes):
    root, log = tmp_path / "shared", tmp_path / "log"
    workers = [processes.Process(target=_work_and_log, args=(root, log)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        finished(worker)
    trained = log.read_text().splitlines()
    assert len(trained) == 3  # two learning rates, then the seeds
    wanted = {k: v for k, v in records(done).items() if not k.endswith(".csv") or "runs/" in k}
    assert records(root) == wanted
