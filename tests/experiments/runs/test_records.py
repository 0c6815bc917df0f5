"""States of stacks: whatever stacks runs were saved in, others go on from them."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import pytest
import safetensors.torch
import torch

from igr.experiments import data
from igr.experiments.errors import RecordError
from igr.experiments.runs.records import Stack, SweepFolder, read_tensors
from igr.experiments.runs.train import train_stack
from igr.experiments.training.config import RunConfig, SweepConfig
from igr.experiments.training.trainer import StackTrainer

CONFIG = SweepConfig(
    num_variables=3, temperatures=(0.2, 0.5), seeds=2, epochs=3, batch_size=50, train_images=100
)
RUNS = CONFIG.runs()


def state_of(runs: list[RunConfig], epochs: int) -> dict[str, torch.Tensor]:
    return _state_of(tuple(runs), epochs)


@functools.cache
def _state_of(runs: tuple[RunConfig, ...], epochs: int) -> dict[str, torch.Tensor]:
    trainer = StackTrainer(runs, data.load("digits").train[:100])
    rows = [trainer.train_epoch() for _ in range(epochs)]
    # As long for a run in any company: a second.
    seconds = torch.arange(1.0, epochs + 1)[:, None, None].expand(-1, len(runs), 1) * len(runs)
    return {**trainer.state(), "metrics": torch.cat([torch.stack(rows), seconds], 2)}


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder.open(tmp_path / "sweep", CONFIG, resume=False)


@pytest.mark.parametrize("wanted", [[0, 1, 2, 3], [3, 1], [2], [0, 3, 2]])
@pytest.mark.parametrize("saved", [[[0, 1, 2, 3]], [[0, 1], [2, 3]], [[3], [1, 0], [2]]])
def test_runs_go_on_from_whatever_stacks_they_were_saved_in(
    saved: list[list[int]], wanted: list[int], folder: SweepFolder
) -> None:
    for part in saved:
        runs = [RUNS[i] for i in part]
        Stack(folder, runs).save(state_of(runs, 2))
    found = Stack(folder, [RUNS[i] for i in wanted]).load()
    assert found is not None
    for r, i in enumerate(wanted):
        (part,) = [part for part in saved if i in part]
        for name, value in state_of([RUNS[j] for j in part], 2).items():
            if name == "metrics":
                assert torch.equal(found[name][:, r, :-1], value[:, part.index(i), :-1])
                assert found[name][:, r, -1].tolist() == [len(wanted), 2 * len(wanted)]
            elif value.dim():
                assert torch.equal(found[name][r], value[part.index(i)])
            else:
                assert torch.equal(found[name], value)


def test_the_latest_state_that_has_all_runs_counts(folder: SweepFolder) -> None:
    Stack(folder, RUNS).save(state_of(RUNS, 1))
    Stack(folder, RUNS[:2]).save(state_of(RUNS[:2], 2))
    epochs = [
        int(state["epoch"])
        for runs in (RUNS, RUNS[:2], RUNS[1:2], RUNS[1:3])
        if (state := Stack(folder, runs).load()) is not None
    ]
    assert epochs == [1, 2, 2, 1]
    assert folder.groups(RUNS) == [RUNS[:2], RUNS[2:]]


def test_a_state_without_the_names_of_its_runs_is_that_of_the_whole_stack(
    folder: SweepFolder,
) -> None:
    """As they were when no stack was ever divided."""
    stack, state = Stack(folder, RUNS), state_of(RUNS, 1)
    stack.path.write_bytes(safetensors.torch.save(state))
    for runs in (RUNS, RUNS[2:]):
        found = Stack(folder, runs).load()
        assert found is not None
        assert torch.equal(
            found["parameter.encoder.0.weight"], state_of(runs, 1)["parameter.encoder.0.weight"]
        )


def test_what_was_sent_is_gone_on_from_wherever_it_is(folder: SweepFolder, tmp_path: Path) -> None:
    Stack(folder, RUNS).save(state_of(RUNS, 1))
    content, _ = Stack(folder, RUNS).saved()
    elsewhere = Stack(SweepFolder(tmp_path / "nowhere"), RUNS, content)
    state = elsewhere.load()
    assert state is not None
    assert state["epoch"] == 1


def test_states_are_kept_until_all_their_runs_are_finished(folder: SweepFolder) -> None:
    for runs in (RUNS[:2], RUNS[2:]):
        Stack(folder, runs).save(state_of(runs, 1))
    for count, left in ((1, 2), (2, 1), (3, 1), (4, 0)):
        folder.run(RUNS[count - 1]).write_weights({}, RUNS[count - 1])
        folder.forget()
        assert len(folder.states()) == left


def test_a_state_of_fewer_runs_than_it_says_is_damaged(folder: SweepFolder) -> None:
    Stack(folder, RUNS).save(state_of(RUNS[:1], 1))
    with pytest.raises(RecordError, match="is damaged"):
        Stack(folder, RUNS[1:]).load()


def test_tensors_that_cannot_be_read_are_named() -> None:
    contents = itertools.chain([b"", b"x" * 100], [(2**60).to_bytes(8, "little") * 4])
    for content in contents:
        with pytest.raises(RecordError, match="a/file is damaged"):
            read_tensors(content, Path("a/file"))


def test_what_a_kill_left_of_a_shared_file_is_removed(folder: SweepFolder) -> None:
    (folder.path / ".results.csv.0123456789ab.tmp").write_text("half")
    with folder.writing():
        assert not list(folder.path.glob("*.tmp"))


def test_seconds_go_on_from_those_that_were_saved(folder: SweepFolder) -> None:
    stack = Stack(folder, RUNS)
    stack.save(state_of(RUNS, 2))
    train_stack(stack, data.load("digits").train[:100])
    for run in stack.folders:
        first, second, third = (row["seconds"] for row in run.metrics())
        assert (first, second) == (4.0, 8.0)
        assert third > 8.0
