"""Turns: one at a time, given up for as long as somebody waits."""

import os
import threading

import pytest
from running import wait_until

from meddaemon.ingest.turn import Turn


def test_one_thread_at_a_time_has_a_turn() -> None:
    turn, inside, most = Turn(), 0, 0

    def compute() -> None:
        nonlocal inside, most
        for _ in range(200):
            with turn:
                inside += 1
                most = max(most, inside)
                os.sched_yield()
                inside -= 1

    threads = [threading.Thread(target=compute) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (inside, most) == (0, 1)


def test_a_turn_that_is_given_up_is_somebody_elses_meanwhile_and_then_ours_again() -> None:
    turn, has_it, over = Turn(), threading.Event(), threading.Event()

    def other() -> None:
        with turn:
            has_it.set()
            over.wait(60)

    thread = threading.Thread(target=other)
    with turn:
        thread.start()
        assert not has_it.is_set()
        with turn.given_up():
            wait_until(has_it.is_set, what="the other's turn")
            over.set()
        assert turn._holder == threading.get_ident()
    thread.join(60)
    with turn:
        pass


def test_who_has_no_turn_gives_none_up() -> None:
    turn = Turn()
    with turn.given_up(), turn:
        assert turn._holder == threading.get_ident()


def test_a_turn_ends_with_an_error() -> None:
    turn = Turn()
    with pytest.raises(OSError, match="gone"), turn, turn.given_up():
        raise OSError("gone")
    with turn:
        pass
