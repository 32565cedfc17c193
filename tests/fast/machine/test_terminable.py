"""Programs that are asked to end: by an exception, even where native code made another one of it."""

from __future__ import annotations

import signal

import pytest

from qwenvl_edge.machine.signals import Terminated, terminable


@pytest.fixture(autouse=True)
def usual_handlers():
    """As a program in a terminal has them: behind `nohup` or in the background signals may be ignored."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    signal.raise_signal(number)


def test_a_signal_ends_the_block():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated) as caught, terminable():
        send(signal.SIGTERM)
    assert caught.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_error_made_of_an_interruption_is_the_interruption():
    with pytest.raises(KeyboardInterrupt) as caught, terminable():
        try:
            send(signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("the shape is not known") from None
    assert not isinstance(caught.value, Terminated)


def test_an_interruption_that_was_swallowed_counts_at_the_end():
    went_on = False
    with pytest.raises(Terminated), terminable():
        try:
            send(signal.SIGHUP)
        except KeyboardInterrupt:
            went_on = True
    assert went_on


def test_a_second_signal_does_not_disturb_what_is_being_removed():
    removed = False
    with pytest.raises(Terminated), terminable():
        try:
            send(signal.SIGTERM)
        finally:
            send(signal.SIGINT)
            removed = True
    assert removed


def test_errors_of_an_undisturbed_block_are_its_own():
    with pytest.raises(ValueError, match="own"), terminable():
        raise ValueError("own")
