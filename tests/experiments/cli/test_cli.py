"""The command line: what it writes, what it says, and how it refuses."""

from __future__ import annotations

import csv
import errno
import gzip
import importlib
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

import chromium
import igr
from igr.experiments import cli
from igr.experiments.cli import console, training
from igr.experiments.cli._missing import exit_if_missing
from igr.experiments.cli.app import COMMANDS
from igr.experiments.cli.demo import DEMO_MARK, tolerance, verdict
from igr.experiments.cli.evaluate import evaluate_runs
from igr.experiments.cli.training import Group
from igr.experiments.errors import ConfigError, RecordError
from igr.experiments.files import write_atomically
from igr.experiments.runs.jobs import locked
from igr.experiments.runs.records import RunFolder, SweepFolder, open_runs
from igr.experiments.runs.stopping import Interrupted
from igr.experiments.runs.sweep import Result, Scoring
from igr.experiments.training.config import RunConfig, SweepConfig
from igr.experiments.training.trainer import StackTrainer

pd = pytest.importorskip("pandas")

QUICK = ["--epochs", "2", "--samples", "5", "--variables", "4", "--categories", "3"]


@pytest.fixture(autouse=True)
def consoles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Consoles that look up the captured streams anew, a width that does not depend on the terminal."""
    monkeypatch.setattr(console, "out", Console(highlight=False, width=100))
    monkeypatch.setattr(console, "notes", Console(stderr=True, highlight=False, width=100))


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], tuple[str, str]]:
    def read() -> tuple[str, str]:
        captured = capsys.readouterr()
        return captured.out, captured.err

    return read


def igr_command(*arguments: object) -> int:
    try:
        cli.main([str(a) for a in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def results(folder: Path) -> dict[str, tuple[dict[str, torch.Tensor], list[dict[str, float]]]]:
    """Weights and metrics of every run, without what depends on the clock."""
    found = {}
    for path in sorted((folder / "runs").iterdir()):
        rows = RunFolder(path).metrics()
        for row in rows:
            del row["seconds"]
        found[path.name] = (RunFolder(path).weights(), rows)
    return found


def assert_same_results(a: Path, b: Path) -> None:
    left, right = results(a), results(b)
    assert left.keys() == right.keys()
    for name, (weights, rows) in left.items():
        assert rows == right[name][1]
        assert all(torch.equal(weights[k], right[name][0][k]) for k in weights)


# What it does


def test_vae_leaves_a_complete_folder(tmp_path: Path, said: Callable[[], tuple[str, str]]) -> None:
    folder = tmp_path / "sweep"
    sweep = ["--family", "igr-i", "--family", "gs", "--temperature", 0.5, "--seeds", 2]
    assert igr_command("vae", *sweep, *QUICK, "--held-out", 100, "--out", folder) == 0
    out, err = said()
    assert "igr-i" in out
    assert "gs" in out
    assert "Traceback" not in err
    names = {f"{family}-t0.5-s{seed}" for family in ("igr-i", "gs") for seed in (0, 1)}
    assert {p.name for p in (folder / "runs").iterdir()} == names
    for name in names:
        run = folder / "runs" / name
        assert {p.name for p in run.iterdir()} == {
            "config.json",
            "versions.json",
            "metrics.csv",
            "weights.safetensors",
            "test-m5.json",
            "held-out-m5.json",
            "reconstructions.png",
            "samples.png",
        }
        assert json.loads((run / "versions.json").read_text())["torch"] == torch.__version__
        assert list(pd.read_csv(run / "metrics.csv")["epoch"]) == [1, 2]
        assert (run / "samples.png").read_bytes().startswith(b"\x89PNG")
    table = pd.read_csv(folder / "results.csv")
    assert set(table["run"]) == names
    assert (
        table[["bound", "released_estimate", "held_out_bound", "train_seconds"]].notna().all().all()
    )
    assert (folder / "curves.png").exists()

    # Going on with what is finished changes nothing.
    before = results(folder), table
    assert igr_command("vae", *sweep, *QUICK, "--held-out", 100, "--out", folder, "--resume") == 0
    assert results(folder).keys() == before[0].keys()
    pd.testing.assert_frame_equal(pd.read_csv(folder / "results.csv"), table)

    said()
    assert igr_command("evaluate", folder, "--samples", 3, "--limit", 20) == 0
    assert "20 test images" in said()[0]
    assert igr_command("evaluate", folder / "runs" / "gs-t0.5-s1", "--samples", 3) == 0
    assert "297 test images" in said()[0]
    assert (
        json.loads((folder / "runs/gs-t0.5-s1/test-first-20-m3.json").read_text())["samples"] == 3
    )


def test_demo_compares_and_names_pictures_that_are_there(
    tmp_path: Path, said: Callable[[], tuple[str, str]]
) -> None:
    folder = tmp_path / "demo"
    quick = ["demo", "--seeds", 1, "--samples", 5, "--out", folder]
    assert igr_command(*quick, "--epochs", 2) == 0
    out, _ = said()
    for expected in (
        "temperature",
        "bound",
        "m = 5",
        "released",
        "time",
        "igr-i",
        "gs",
        "ahead by",
    ):
        assert expected in out
    assert "A wrong temperature, from 0.1 to 1.5, costs" in out
    page = folder / "index.html"
    assert str(page) in out
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page.read_text())
    assert all(re.match(r"data:image/(png|svg\+xml);base64,", each) for each in addresses)
    # The plot, the originals, and reconstructions and samples of both families at their best and lowest temperatures.
    assert 6 <= len(addresses) <= 10
    assert (folder / "bounds.png").read_bytes().startswith(b"\x89PNG")
    if chromium.find():
        with chromium.start(tmp_path / "profile") as browser:
            assert chromium.overflow(browser, page) == [0, 0]
    (folder / "mine.txt").write_text("the user's own")
    assert (
        igr_command("demo", "--epochs", 1, "--seeds", 1, "--out", folder) == 2
    )  # no room for a new one
    (folder / "mine.txt").unlink()
    assert igr_command(*quick, "--epochs", 1) == 0
    assert len(RunFolder(folder / "runs" / "gs-t0.1-s0").metrics()) == 1


def group(family: str, bounds: list[float], temperature: float = 0.5) -> Group:
    config = RunConfig(family=family, temperature=temperature)
    scores = [{"bound": b, "released_estimate": b, "elbo": b} for b in bounds]
    return Group([Result(config, RunFolder(Path()), [each], [], 1) for each in scores])


@pytest.mark.parametrize(
    "igr_bounds, gs_bounds, expected",
    [
        ([-10.0, -10.1], [-12.0, -12.1], "igr-i is better by 2.00 nats"),
        ([-12.0, -12.1], [-10.0, -10.1], "gs is better by 2.00 nats"),
        ([-10.0, -12.0], [-10.5, -12.5], "too close to tell"),
        ([-12.0], [-10.0], "gs is ahead by 2.00 nats, on one seed"),
        ([float("nan")], [-10.0], "diverged"),
    ],
)
def test_the_claim_follows_the_numbers(
    igr_bounds: list[float], gs_bounds: list[float], expected: str
) -> None:
    assert expected in verdict(group("igr-i", igr_bounds), group("gs", gs_bounds))


@pytest.mark.parametrize(
    "igr_bounds, gs_bounds, expected",
    [
        (([-21.0, -21.1], [-20.0, -20.1]), ([-25.0, -25.1], [-19.0, -19.1]), "5.00 less with igr-i (standard"),
        (([-25.0, -25.1], [-19.0, -19.1]), ([-21.0, -21.1], [-20.0, -20.1]), "5.00 less with gs (standard"),
        (([-21.0, -25.0], [-20.0, -22.0]), ([-21.0, -22.0], [-20.0, -20.1]), "too close to tell"),
        (([-21.0], [-20.0]), ([-25.0], [-19.0]), "5.00 less with igr-i, on one seed"),
        (([math.nan], [-20.0]), ([-25.0], [-19.0]), "a run of igr-i diverged"),
    ],
)  # fmt: skip
def test_how_forgiving_a_family_is_follows_the_numbers(igr_bounds, gs_bounds, expected) -> None:
    groups = [
        group(family, values, temperature)
        for family, bounds in (("igr-i", igr_bounds), ("gs", gs_bounds))
        for temperature, values in zip((0.1, 1.0), bounds, strict=True)
    ]
    assert expected in tolerance(groups)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_temperature_at_which_a_run_diverged_is_not_chosen(bad: float) -> None:
    def held_out(*bounds: float) -> float:
        scores = [[{}, {"bound": bound}] for bound in bounds]
        return Group(
            [Result(RunConfig(), RunFolder(Path()), each, [], 1) for each in scores]
        ).held_out

    assert held_out(bad, -1.0) == held_out(bad, bad) < held_out(-100.0, -102.0) == -101.0


def test_version_and_help(said: Callable[[], tuple[str, str]]) -> None:
    assert igr_command("--version") == 0
    assert said()[0] == f"igr {igr.__version__}\n"
    assert igr_command() == 0
    assert "demo" in said()[0]
    assert igr_command("vae", "--help") == 0


# Interruptions


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "sweep"
    assert (
        igr_command("vae", *QUICK, "--temperature", 0.2, "--temperature", 0.4, "--out", folder) == 0
    )
    return folder


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_code_that_is_not_used_is_told(
    share: float,
    tmp_path: Path,
    said: Callable[[], tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.import_module("igr.experiments.cli.vae"), "USED", share)
    assert igr_command("vae", *QUICK, "--out", tmp_path / "out") == 0
    told = "of 4.4 nats, so it is not used" in " ".join(said()[0].split())
    assert told == (share == 1.0)


def test_runs_that_diverge_are_told_and_hide_no_other(
    tmp_path: Path, said: Callable[[], tuple[str, str]]
) -> None:
    wild = ["--lr", "1e30", "--seeds", 2, "--temperature", 0.2, "--temperature", 0.4]
    assert igr_command("vae", *QUICK, *wild, "--out", tmp_path / "vae") == 0
    assert said()[0].count("diverged") == 2 * 3
    wild = ["lr=1e30,0.001", "seeds=2", "epochs=1", "train_images=200", "held_out=100"]
    few = ["--samples", 5, "--test-images", 5]
    assert igr_command("sweep", *wild, *few, "--out", tmp_path / "sweep") == 0
    assert said()[0].count("diverged") == 4


def test_structured_output_has_no_code_to_use(
    tmp_path: Path, said: Callable[[], tuple[str, str]]
) -> None:
    units = ["--architecture", "sop", *QUICK[:-1], "2"]
    assert igr_command("vae", *units, "--out", tmp_path / "out") == 0
    assert "not used" not in said()[0]


def test_the_learning_rate_suits_the_data(whole: Path) -> None:
    (record, *_) = csv.DictReader((whole / "results.csv").read_text().splitlines())
    assert float(record["lr"]) == 0.003


def test_evaluation_tells_the_same_time(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two runs that trained side by side, half of it is each one's."""
    table = csv.DictReader((whole / "results.csv").read_text().splitlines())
    rows = {row["run"]: row for row in table}
    monkeypatch.chdir(whole / "runs" / "igr-i-t0.2-s0")
    for place in (whole, Path()):
        for found in evaluate_runs(open_runs(place), Scoring(False, 3, 5)):
            assert found.seconds == float(rows[found.config.name]["train_seconds"])
            assert found.seconds == found.run.metrics()[-1]["seconds"] / 2


def vae(folder: Path, *more: str) -> int:
    return igr_command(
        "vae", *QUICK, "--temperature", 0.2, "--temperature", 0.4, "--out", folder, *more
    )


def at_step(number: int, action: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `action` called in the midst of the training step of that number."""
    step, calls = StackTrainer.step, 0

    def interrupted(self: StackTrainer, *arguments: torch.Tensor) -> object:
        nonlocal calls
        calls += 1
        if calls == number:
            action()
        return step(self, *arguments)

    monkeypatch.setattr(StackTrainer, "step", interrupted)


def test_ctrl_c_keeps_what_is_finished(
    tmp_path: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: Callable[[], tuple[str, str]],
) -> None:
    folder = tmp_path / "sweep"
    with monkeypatch.context() as patch:
        at_step(20, lambda: signal.raise_signal(signal.SIGINT), patch)
        assert vae(folder) == 130
    _, err = said()
    assert "stopped after epoch 1; go on with the same command and --resume" in err.splitlines()[-1]
    assert igr_command("evaluate", folder) == 2
    assert "--resume" in said()[1]
    assert vae(folder) == 2
    assert vae(folder, "--resume") == 0
    assert_same_results(folder, whole)
    command = importlib.import_module("igr.experiments.cli.evaluate")
    monkeypatch.setattr(command, "evaluate_runs", fail_with(Interrupted(2)))
    assert igr_command("evaluate", folder) == 130
    assert said()[1].endswith("stopped after epoch 2; the same command goes on from there\n")


def test_a_demo_stopped_goes_on_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], tuple[str, str]]
) -> None:
    folder = tmp_path / "demo"
    command = ["demo", "--seeds", 1, "--epochs", 2, "--samples", 2, "--out", folder]
    with monkeypatch.context() as patch:
        at_step(20, lambda: signal.raise_signal(signal.SIGINT), patch)
        assert igr_command(*command) == 130
    assert "the same command goes on" in said()[1].splitlines()[-1]
    steps, step = [], StackTrainer.step

    def counted(self: StackTrainer, *arguments: torch.Tensor) -> object:
        steps.append(1)
        return step(self, *arguments)

    monkeypatch.setattr(StackTrainer, "step", counted)
    monkeypatch.setattr(training, "finish_sweep", fail_with(KeyboardInterrupt))
    assert igr_command(*command) == 130
    # 13 steps an epoch, two epochs, two families: all but the first epoch of the first.
    assert len(steps) == 3 * 13


def test_a_demo_removes_nothing_that_another_process_is_at(
    tmp_path: Path, said: Callable[[], tuple[str, str]]
) -> None:
    folder = tmp_path / "demo"
    command = ["demo", "--seeds", 1, "--samples", 2, "--out", folder]
    SweepFolder.open(folder, SweepConfig(), resume=False)
    (folder / DEMO_MARK).write_text("")
    before = sorted(folder.rglob("*"))
    with locked(folder, "a sweep"):
        assert igr_command(*command, "--epochs", 1) == 2
        assert "another process is at work in" in said()[1]
        assert {*before} <= {*folder.rglob("*")}


def fail_with(error: BaseException | type[BaseException]) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("step", [1, 20])
def test_killed_it_goes_on_to_the_same_end(
    tmp_path: Path, whole: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sweep"
    child = os.fork()
    if child == 0:
        at_step(step, lambda: os.kill(os.getpid(), signal.SIGKILL), monkeypatch)
        vae(folder)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert vae(folder, "--resume") == 0
    assert_same_results(folder, whole)


# Refusals


def truncated_mnist(folder: Path) -> dict[str, str]:
    mnist = folder / "mnist"
    mnist.mkdir()
    for part in ("train", "t10k"):
        content = gzip.compress(bytes(1000))
        (mnist / f"{part}-images-idx3-ubyte.gz").write_bytes(content[: len(content) // 2])
    return {"IGR_DATA": str(folder)}


def occupied(folder: Path) -> dict[str, str]:
    (folder / "out").mkdir()
    (folder / "out" / "thesis.tex").write_text("precious")
    return {}


def other_sweep(folder: Path) -> dict[str, str]:
    SweepFolder.open(folder / "out", SweepConfig(epochs=7), resume=False)
    return {}


def other_format(folder: Path) -> dict[str, str]:
    SweepFolder.open(folder / "out", SweepConfig(), resume=False)
    (folder / "out" / "config.json").write_text('{"format": 99}')
    return {}


def broken_json(folder: Path) -> dict[str, str]:
    SweepFolder.open(folder / "out", SweepConfig(), resume=False)
    (folder / "out" / "config.json").write_text('{"format": 1, "dat')
    return {}


def a_file(folder: Path) -> dict[str, str]:
    (folder / "out").write_text("no folder")
    return {}


def nothing(folder: Path) -> dict[str, str]:
    return {}


REFUSALS = {
    "unknown data set": (nothing, "vae --dataset minst", "minst.*mnist"),
    "unknown family": (nothing, "vae --family igri", "did you mean 'igr-i'"),
    "unknown architecture": (nothing, "vae --architecture linaer", "did you mean 'linear'"),
    "unknown option": (nothing, "vae --temprature 1", "No such option"),
    "unknown command": (nothing, "vea", "No such command"),
    "no number": (nothing, "vae --temperature warm", "temperature"),
    "temperature zero": (
        nothing,
        "vae --temperature 0",
        "temperature: expected a positive finite number, got 0",
    ),
    "temperature negative": (nothing, "vae --temperature=-1", "temperature: expected a positive"),
    "temperature nan": (nothing, "vae --temperature nan", "temperature: expected a positive"),
    "temperature infinite": (nothing, "vae --temperature inf", "temperature: expected a positive"),
    "temperature too low": (
        nothing,
        "vae --temperature 1e-16",
        "temperature: expected a positive finite number above 1e-16, got 1e-16",
    ),
    "prior temperature": (
        nothing,
        "vae --prior-temperature 1e-17",
        "prior-temperature: .*above 1e-16",
    ),
    "estimator temperature": (
        nothing,
        "vae --estimator reinmax --estimator-temperature 1e-17",
        "estimator-temperature: .*above 1e-16",
    ),
    "temperature twice": (nothing, "vae --temperature 1 --temperature 1.0", "given twice"),
    "family twice": (nothing, "vae --family gs --family gs", "given twice"),
    "no epochs": (nothing, "vae --epochs 0", "epochs: expected a whole number of at least 1"),
    "no seeds": (nothing, "vae --seeds 0", "seeds"),
    "no samples": (nothing, "vae --samples 0", "samples"),
    "learning rate": (nothing, "vae --lr -1", "lr: expected a positive"),
    "no variables": (nothing, "vae --num-variables 0", "num-variables: expected a whole number"),
    "one category": (nothing, "vae --categories 1", "at least 2"),
    "batch too large": (nothing, "vae --batch-size 1501", "batch-size: expected at most the 1500"),
    "too many held out": (nothing, "vae --held-out 1500", "held-out"),
    "grey levels": (nothing, "vae --dataset fashion-mnist", "decoder: bernoulli needs a binary"),
    "compiled discretely": (
        nothing,
        "vae --family gs --estimator relax --compile",
        "compile: steps by relax are not compiled, those by pathwise",
    ),
    "threads": (nothing, "vae --threads -2", "threads"),
    "device": (nothing, "vae --device quantum", "device"),
    "truncated file": (truncated_mnist, "vae --dataset mnist", "cut short"),
    "no folder of data": (nothing, "vae --dataset mnist", "IGR_DATA"),
    "occupied folder": (occupied, "vae", "not empty"),
    "nothing to resume": (occupied, "vae --resume", "no sweep"),
    "another configuration": (other_sweep, "vae --resume", "epochs 7, not 100"),
    "another format": (other_format, "vae --resume", "another version"),
    "broken configuration": (broken_json, "vae --resume", "damaged"),
    "a file": (a_file, "vae", "is a file"),
    "a sweep is there": (other_sweep, "vae", "holds a sweep: `igr vae --resume` goes on with it"),
    "evaluate nothing": (nothing, "evaluate nowhere", "no folder"),
    "evaluate too early": (other_sweep, "evaluate out", "not"),
    "evaluate limit": (other_sweep, "evaluate out --limit 0", "limit"),
    "evaluate another folder": (occupied, "evaluate out", "holds no runs"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_it_refuses(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], tuple[str, str]]
) -> None:
    prepare, arguments, expected = REFUSALS[name]
    monkeypatch.chdir(tmp_path)
    if "mnist" in arguments:
        monkeypatch.setenv("IGR_DATA", str(tmp_path / "nowhere"))
    for variable, value in prepare(tmp_path).items():
        monkeypatch.setenv(variable, value)
    before = sorted(tmp_path.rglob("*"))
    more = ["--out", "out"] if arguments.startswith("vae") else []
    assert igr_command(*arguments.split(), *more) == 2
    out, err = said()
    assert out == ""
    assert err.startswith("igr: ")
    assert len(err.splitlines()) == 1
    assert re.search(expected, err), err
    # Nothing is left of it but, where there was a folder, its lock.
    assert [p for p in sorted(tmp_path.rglob("*")) if p.name != ".lock"] == [
        p for p in before if p.name != ".lock"
    ]


def test_a_compiler_that_does_not_work_is_said_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], tuple[str, str]]
) -> None:
    def broken(function: object) -> None:
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    assert igr_command("vae", *QUICK, "--compile", "--out", str(tmp_path / "out")) == 2
    _, err = said()
    assert err.startswith("igr: compile: torch.compile does not work here")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(said: Callable[[], tuple[str, str]]) -> None:
    assert igr_command("vae", *QUICK, "--out", "/dev/null/out") == 2
    assert said()[1].splitlines()[-1].startswith("igr: cannot create folder /dev/null/out")


@pytest.mark.parametrize("allowed", [0, 3, 8, 12])
def test_a_full_disk_is_one_line_and_nothing_is_lost(
    allowed: int,
    tmp_path: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: Callable[[], tuple[str, str]],
) -> None:
    folder, calls = tmp_path / "sweep", 0
    fsync = os.fsync

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 2 * allowed:  # the file, then its folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert vae(folder) == 2
    last = said()[1].splitlines()[-1]
    assert last.startswith("igr: cannot write")
    assert "No space left on device" in last
    assert not list(folder.rglob("*.tmp"))
    assert vae(folder, "--resume") == 0
    assert_same_results(folder, whole)


# Records


@pytest.mark.parametrize("stage", ["open", "write", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_content(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.json"
    write_atomically(path, "old")

    def fail(*_: object, **__: object) -> object:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full(io.BytesIO):
        write = fail  # type: ignore[assignment]

    with monkeypatch.context() as patch:
        if stage == "open":
            patch.setattr(Path, "open", fail)
        elif stage == "write":
            patch.setattr(Path, "open", lambda *_: Full())
        elif stage == "fsync":
            patch.setattr(os, "fsync", fail)
        else:
            patch.setattr(Path, "replace", fail)
        with pytest.raises(RecordError, match=r"cannot write .*file.json: No space left"):
            write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]


def test_configurations_survive_json() -> None:
    sweep = SweepConfig(families=("gs", "igr-i"), temperatures=(0.1, 1.0), seeds=2, lr=1e-3)
    assert SweepConfig.from_dict(json.loads(json.dumps(sweep.to_dict()))) == sweep
    for run in sweep.runs():
        assert RunConfig.from_dict(json.loads(json.dumps(run.to_dict()))) == run
    assert len({run.name for run in sweep.runs()}) == 8
    with pytest.raises(ConfigError, match="another version"):
        RunConfig.from_dict({"colour": "red"})


def test_damaged_weights_are_named(whole: Path, tmp_path: Path) -> None:
    run = next((whole / "runs").iterdir())
    content = (run / "weights.safetensors").read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"\xff" * 100):
        (tmp_path / "weights.safetensors").write_bytes(damaged)
        with pytest.raises(RecordError, match=r"weights\.safetensors"):
            RunFolder(tmp_path).weights()


# What is seen of the command


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("-h",), ("vaee",), ()])
def test_what_needs_no_torch_does_not_import_it(arguments: tuple[str, ...]) -> None:
    code = (
        "import sys; from igr.experiments.cli import main\n"
        f"try: main({list(arguments)!r})\nexcept SystemExit: pass\n"
        "assert not {'torch', 'matplotlib', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_flags_as_flags_and_two_examples(
    command: str, said: Callable[[], tuple[str, str]]
) -> None:
    assert igr_command(command, "-h") == 0
    text = said()[0]
    assert "<bool>" not in text
    assert text.count(f"igr {command} ") >= 3  # the usage line's among them
    assert "Examples:" in text


def test_every_command_has_a_file_with_examples_that_name_it() -> None:
    for name in COMMANDS:
        module = importlib.import_module(f"igr.experiments.cli.{name}")
        assert len(module.EXAMPLES) >= 2
        assert all(f"igr {name} " in f"{example} " for example in module.EXAMPLES)


@pytest.mark.parametrize("width", [40, 60, 100])
def test_a_table_leaves_out_columns_and_cuts_no_number(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "out", Console(width=width, file=io.StringIO()))
    columns = [console.Column("model", left=True), console.Column("bound")]
    columns += [console.Column(f"number {i}", rank=i) for i in (3, 1, 2)]
    numbers = ["-123.45 ± 0.67", "33.33 ± 0.33", "11.11 ± 0.11", "22.22 ± 0.22"]
    console.out.print(console.table(columns, [["IGR-I + SL", *numbers]]))
    text = console.out.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    assert numbers[0] in text
    kept = [name for name in ("number 1", "number 2", "number 3") if name in text]
    assert kept == ["number 1", "number 2", "number 3"][: {40: 0, 60: 2, 100: 3}[width]]
    assert all(len(line) <= width for line in text.splitlines())


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_streams_of_other_encodings_get_what_they_can_write(encoding: str) -> None:
    code = (
        "from igr.experiments.cli import console; console.prepare()\n"
        "console.say('1.00 ± 0.10 – “a” ☃')"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=True,
    ).stdout.decode(encoding)
    assert re.match(r'1\.00 (±|\+-) 0\.10 - "a" \?', found)


def test_missing_packages_are_named_as_pip_knows_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        exit_if_missing(("PIL", "no_such_module"))
    assert "pip install no_such_module" in capsys.readouterr().err


def test_a_folder_of_a_name_too_long_is_one_line(said: Callable[[], tuple[str, str]]) -> None:
    assert igr_command("vae", "--out", "x" * 300, *QUICK) == 2
    assert "File name too long" in said()[1]


def test_a_device_without_data_is_refused(said: Callable[[], tuple[str, str]]) -> None:
    assert igr_command("vae", "--device", "meta", *QUICK) == 2
    assert said()[1].startswith("igr: device: expected one that torch can use")


@pytest.mark.skipif(os.name != "posix", reason="needs a shell that closes standard output")
def test_a_closed_output_is_no_error(tmp_path: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m igr --help >&-",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0])
def test_ctrl_c_in_the_first_seconds_is_one_line(tmp_path: Path, seconds: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "igr", "vae", "--epochs", "10000", "--out", str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("igr: stopped")
