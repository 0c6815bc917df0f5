"""Records that are truncated, altered or another's: one line that names the file, exit code 2, and nothing is lost."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from rich.console import Console

from igr.experiments import cli
from igr.experiments.cli.app import COMMANDS
from igr.experiments.paper import results
from igr.experiments.runs import driver
from igr.experiments.runs.stopping import Interrupted
from igr.experiments.runs.sweep import grid
from igr.experiments.training.config import SweepConfig

SETTINGS = {"epochs": [2], "train_images": [200], "num_variables": [4], "held_out": [50]}
WORDS = [f"{name}={value}" for name, (value,) in SETTINGS.items()]
SWEEP = ["sweep", *WORDS, "--samples", "5", "--test-images", "5"]
MORE_SCORES = [*SWEEP[:-1], "6"]
CELL = ["reproduce", "table1", "--row", "igr-i", "--dataset", "mnist", "--scale", "smoke"]
FIGURE = ["reproduce", "figure4", "--scale", "smoke"]
VAE = ["vae", "--epochs", "1", "--samples", "5", "--variables", "4", "--categories", "3"]


def run(*arguments: object) -> tuple[int, list[str]]:
    """Exit code, and the lines of the command's own on standard error."""
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            cli.main([str(each) for each in arguments])
        except SystemExit as end:
            return int(end.code or 0), errors.getvalue().splitlines()
    return 0, errors.getvalue().splitlines()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each kind."""
    root = tmp_path_factory.mktemp("made")
    for name, command in {"sweep": SWEEP, "cell": CELL, "figure": FIGURE, "vae": VAE}.items():
        assert run(*command, "--out", root / name)[0] == 0
    (job,) = grid(SETTINGS, samples=5, test_images=5)

    def stop(path: Path, content: object) -> None:
        if path.parent.name == "state":
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        driver.run([job], root / "state", Console(file=io.StringIO()), on_file=stop)
    return root


STRANGE = {
    "empty": b"",
    "zeros": bytes(100),
    "noise": bytes(torch.arange(200).mul(37).remainder(256).tolist()),
    "nested": b"[" * 100_000,
    "deep": b'{"a":' * 100_000,
    "null": b"null",
    "list": b"[1, 2]",
    "object": b"{}",
    "huge number": b'{"format": 1' + b"0" * 5000 + b"}",
    "not UTF-8": b'{"format": "\xff"}',
    "another's": b"<html>404</html>",
}


def damages(path: Path) -> dict[str, bytes]:
    """What may have become of a file."""
    content = path.read_bytes()
    found = {**STRANGE, "half": content[: len(content) // 2]}
    if path.suffix == ".json":
        record, wrong = json.loads(content), (None, "x", [], {}, -1)
        for i, name in enumerate(record):
            others = {k: v for k, v in record.items() if k != name}
            found[f"no {name}"] = json.dumps(others).encode()
            value = wrong[i % 5]
            found[f"{name}: {value!r}"] = json.dumps({**record, name: value}).encode()
    elif path.suffix == ".csv":
        lines = content.decode()
        found["header alone"] = lines.splitlines()[0].encode()
        found["words"] = lines.replace("1", "x").encode()
        found["a short row"] = f"{lines}1,2\n".encode()
        found["a long row"] = f"{lines}{'1,' * 20}1\n".encode()
    else:
        tensors = safetensors.torch.load(content)

        def changed(change: Callable[[torch.Tensor], torch.Tensor]) -> bytes:
            return safetensors.torch.save({k: change(v).contiguous() for k, v in tensors.items()})

        found["long header"] = (10**12).to_bytes(8, "little") + content[8:]
        found["other shapes"] = changed(lambda v: v[..., :1] if v.dim() else v)
        found["other types"] = changed(lambda v: v.to(torch.int32))
        found["no dimensions"] = changed(lambda v: v.flatten()[0])
        found["no tensors"] = safetensors.torch.save({})
    return found


KINDS = {
    "settings of a sweep": ("sweep", "sweeps/*/config.json", [SWEEP, ["status"]]),
    "versions": ("sweep", "sweeps/*/runs/*/versions.json", [SWEEP]),
    "metrics": ("sweep", "sweeps/*/runs/*/metrics.csv", [SWEEP]),
    "scores": ("sweep", "sweeps/*/runs/*/test*.json", [SWEEP]),
    "weights": ("sweep", "sweeps/*/runs/*/weights.safetensors", [MORE_SCORES]),
    "state": ("state", "sweeps/*/state/*.safetensors", [SWEEP, ["status"]]),
    "cell": ("cell", "cells/*.json", [CELL, [*CELL, "--again"], ["collect"]]),
    "figure": ("figure", "figures/smoke/*.json", [FIGURE]),
    "settings of igr vae": ("vae", "config.json", [["evaluate", "--samples", "5"]]),
    "settings of a run": ("vae", "runs/*/config.json", [["evaluate", "--samples", "5"]]),
    "metrics of igr vae": ("vae", "runs/*/metrics.csv", [["evaluate", "--samples", "5"]]),
    "weights of igr vae": ("vae", "runs/*/weights.safetensors", [["evaluate", "--samples", "6"]]),
}


def kept(root: Path) -> dict[str, bytes]:
    """What has been computed."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.suffix in (".json", ".safetensors", ".csv")
        and path.is_file()
        and path.name not in ("results.csv", "cells.csv")
    }


def with_folder(command: list[str], root: Path, into: Path) -> list[object]:
    name, *others = command
    if name in ("sweep", "reproduce"):
        return [*command, "--out", root]
    return [name, root, *others, *(["--into", into] if name == "collect" else [])]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_records_are_one_line(
    kind: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "folder", lambda: tmp_path / "none")
    folder, pattern, commands = KINDS[kind]
    (file, *_) = sorted((made / folder).glob(pattern))
    name = file.relative_to(made / folder)
    for damage, content in {**damages(file), "a folder": None}.items():
        for command in commands:
            root = tmp_path / "root"
            shutil.copytree(made / folder, root)
            if content is None:
                (root / name).unlink()
                (root / name).mkdir()
            else:
                (root / name).write_bytes(content)
            before = kept(root)
            code, said = run(*with_folder(command, root, tmp_path / "into"))
            what = f"{damage}, {command[0]}: {said}"
            assert code in (0, 2), what
            if code:
                (line,) = [each for each in said if each.startswith("igr: ")] or [what]
                assert "Traceback" not in "".join(said), what
                assert name.name in line or str(root) in line, what
                after = kept(root)
                assert {k: after.get(k) for k in before} == before, what
            shutil.rmtree(root)


@pytest.mark.parametrize("part", ["sweeps", "run"])
@pytest.mark.parametrize("path", ["../../elsewhere", "/tmp/elsewhere", "", "a/../../b", "a\0b"])
def test_a_record_cannot_lead_out_of_its_folder(
    part: str, path: str, made: Path, tmp_path: Path
) -> None:
    root = tmp_path / "a" / "root"
    shutil.copytree(made / "cell", root)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "metrics.csv").write_text("precious")
    (cell,) = (root / "cells").glob("*.json")
    record = json.loads(cell.read_text())
    if part == "sweeps":
        record["sweeps"] = [path]
    else:
        record["runs"][0]["run"], record["curve"] = path, True
    cell.write_text(json.dumps(record))
    for command in ([*CELL, "--again", "--out", root], ["collect", root, "--into", tmp_path / "i"]):
        code, (line,) = run(*command)
        assert code == 2
        assert cell.name in line
    assert (tmp_path / "elsewhere" / "metrics.csv").read_text() == "precious"


@pytest.mark.parametrize(
    ("place", "is_folder"),
    [("locks", False), ("locks/{name}.lock", True), ("progress", False), ("sweeps", False)],
)
def test_a_folder_where_something_else_is_in_the_way_is_one_line(
    place: str, is_folder: bool, tmp_path: Path
) -> None:
    (job,) = grid(SETTINGS, samples=5, test_images=5)
    path = tmp_path / place.format(name=job.name)
    path.parent.mkdir(exist_ok=True)
    if is_folder:
        path.mkdir()
    else:
        path.write_text("")
    code, said = run(*SWEEP, "--out", tmp_path)
    assert code == 2
    assert said[-1].startswith("igr: ")
    assert "Traceback" not in "".join(said)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_home_of_nobody_is_one_line(command: str) -> None:
    folder = "~no-such-user/x"
    words = {"sweep": ["epochs=1"], "reproduce": ["figure4", "--scale", "smoke"]}.get(command, [])
    if command in ("sweep", "reproduce", "vae", "demo"):
        words += ["--out", folder]
    else:
        words += [folder, *(["--into", "x"] if command == "collect" else [])]
    code, (line,) = run(command, *words)
    assert code == 2
    assert line.startswith(f"igr: {folder}: ")


@pytest.mark.skipif(sys.platform != "linux", reason="needs names that are not UTF-8")
def test_a_folder_whose_name_is_not_utf8_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    """safetensors opens none, and calls what is in there damaged."""
    folder = tmp_path / os.fsdecode(b"a\xff")
    for command in (VAE, SWEEP):
        code, said = run(*command, "--out", folder)
        assert code == 2
        assert "its name is not UTF-8" in said[-1]
    assert not folder.exists()
    state = folder / "sweeps" / "x" / "state"
    state.mkdir(parents=True)
    (state / "y.safetensors").write_bytes(safetensors.torch.save({}))
    (state.parent / "config.json").write_text(json.dumps({"format": 1, **SweepConfig().to_dict()}))
    code, (line,) = run("status", folder)
    assert code == 2
    assert "damaged" not in line


def test_collecting_what_is_gone_is_one_line(made: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(made / "cell", root)
    (cell,) = (root / "cells").glob("*.json")
    record = json.loads(cell.read_text())
    full = {**record["scale"], "name": "full", "stand_in": None}
    cell.write_text(json.dumps({**record, "curve": True, "scale": full}))
    shutil.rmtree(root / "sweeps")
    code, (line,) = run("collect", root, "--into", tmp_path / "into")
    assert code == 2
    assert "metrics.csv" in line


def test_a_page_is_all_that_a_report_writes_and_it_goes_without_curves_that_are_gone(
    made: Path, tmp_path: Path
) -> None:
    root, page = tmp_path / "root", tmp_path / "page.html"
    shutil.copytree(made / "cell", root)
    for path in root.glob("figures/*/*"):
        path.unlink()
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert run("report", root, "--out", page) == (0, [])
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    drawn = page.read_text().count("data:image/svg")
    assert drawn > 0
    shutil.rmtree(root / "sweeps")
    assert run("report", root, "--out", page) == (0, [])
    assert page.read_text().count("data:image/svg") < drawn
    code, (line,) = run("report", root, "--out", ".")
    assert code == 2
    assert line.startswith("igr: cannot write .: ")


def shapes() -> list[tuple[Any, Any, str | None]]:
    return [
        ({"a": 1, "b": "x"}, {"a": float}, None),
        ({"a": True}, {"a": float}, "a: True is not float"),
        ({"a": 1.5}, {"a": int}, "a: 1.5 is not int"),
        ({}, {"a": {"b": int}}, "a is missing"),
        ({"a": {}}, {"a": {"b": int}}, "a.b is missing"),
        ([1], {}, "it: expected an object"),
        ({"a": [[1], ["x"]]}, {"a": [[int]]}, "a[1][0]: 'x' is not int"),
        ({"a": 3}, {"a": [int]}, "a: expected a list"),
        ({"a": None}, {"a": (str, None)}, None),
        ({"a": 1}, {"a": (str, None)}, "a: 1 is not str"),
    ]


@pytest.mark.parametrize(("value", "shape", "expected"), shapes())
def test_shapes(value: Any, shape: Any, expected: str | None) -> None:
    from igr.experiments.files import misfit

    assert misfit(value, shape) == expected
