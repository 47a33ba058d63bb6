"""Signals around what must not be cut in half."""

import os
import signal
import threading

import pytest

from trainables.host.signals import defer_signals


def write(done: list[str]) -> None:
    with defer_signals():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("written")


def broken_write() -> None:
    with defer_signals():
        os.kill(os.getpid(), signal.SIGINT)
        raise ValueError("the disk is full")


def test_a_signal_within_is_delivered_at_the_end() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        write(done)
    assert done == ["written"]
    with pytest.raises(KeyboardInterrupt):  # and then as ever
        os.kill(os.getpid(), signal.SIGINT)


def test_it_is_delivered_after_an_error_too() -> None:
    with pytest.raises(KeyboardInterrupt) as ended:
        broken_write()
    assert isinstance(ended.value.__context__, ValueError)


def test_a_thread_hears_no_signals_anyway() -> None:
    passed = []

    def work() -> None:
        with defer_signals():
            passed.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert passed
