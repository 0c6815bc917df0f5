"""The estimate of the time left, on a clock that the test turns."""

from __future__ import annotations

import io

from rich.console import Console

from igr.experiments.runs.progress import Board


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def board(parts: dict[str, float], clock: Clock, workers: int = 1) -> Board:
    return Board(parts, Console(file=io.StringIO(), width=200), workers=workers, clock=clock)


def test_before_anything_is_done_the_expected_time_is_left():
    shown = board({"a": 60.0, "b": 40.0}, Clock())
    assert shown.left == 100.0
    assert shown.fraction == 0.0


def test_several_workers_share_what_is_left():
    assert board({"a": 60.0, "b": 40.0}, Clock(), workers=2).left == 50.0


def test_what_was_measured_takes_over():
    clock = Clock()
    shown = board({"a": 1000.0, "b": 1000.0}, clock)
    shown.begin("a", 1000.0)
    clock.now += 3000.0
    shown.advance("a", 1000.0)
    shown.finish("a")
    # Everything takes three times as long as expected; the prior still counts for 45 s of 1,045.
    assert abs(shown.left - 1000 * (3000 + 45) / (1000 + 45)) < 1e-6
    assert shown.fraction == 0.5


def test_what_had_been_done_before_does_not_look_fast():
    clock = Clock()
    shown = board({"a": 100.0}, clock)
    shown.begin("a", 100.0)
    shown.skip("a", 90.0)
    clock.now += 10.0
    shown.advance("a", 5.0)
    assert 5.0 < shown.left < 11.0  # 5 of 10 took 10 s


def test_a_part_taken_up_again_begins_anew():
    shown = board({"a": 10.0}, Clock())
    shown.begin("a", 10.0)
    shown.advance("a", 8.0)
    shown.begin("a", 10.0)
    assert shown.fraction == 0.0


def test_waiting_for_another_process_takes_no_time():
    clock = Clock()
    shown = board({"a": 100.0, "b": 20.0}, clock)
    shown.begin("a", 100.0)
    for _ in range(100):
        clock.now += 10.0
        shown.wait("a")
        assert (shown.left, shown.left_of("a")) == (120.0, 100.0)
    shown.begin("b", 20.0)
    clock.now += 30.0
    shown.advance("b", 15.0)
    shown.wait("a")
    assert shown.left_of("a") == 100.0
    assert 105.0 < shown.left < 210.0  # 105 of 120, at up to twice the expected time


def test_the_line_names_what_goes_on_and_the_time_left():
    clock = Clock()
    shown = board({"a": 10.0, "b": 50.0, "c": 1.0}, clock)
    shown.begin("a", 10.0)
    shown.finish("a")
    shown.begin("b", 50.0)
    shown.note("b", "epoch 2 of 5")
    line = shown.line()
    assert "1 of 3 done" in line
    assert "b: epoch 2 of 5, 50 s left" in line
    assert "c:" not in line


def test_lines_come_now_and_then():
    clock, file = Clock(), io.StringIO()
    shown = Board({"a": 10.0}, Console(file=file, width=200), clock=clock, every=10.0)
    shown.begin("a", 10.0)
    for _ in range(100):
        clock.now += 0.3
        shown.advance("a", 0.1)
    assert len(file.getvalue().splitlines()) == 2
