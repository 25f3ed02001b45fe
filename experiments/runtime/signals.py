"""Stopping between two steps."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class StopRequest:
    """Whether somebody has asked the process to stop, and by SIGTERM, as a cluster does before it
    takes a machine.
    """

    requested: bool = False
    preempted: bool = False


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Within this context the first Ctrl-C (or SIGTERM) is a request; the second acts as usual.

    Signals are the main thread's: in another one nothing is ever requested.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def request(number: int, frame: FrameType | None) -> None:
        stop.requested = True
        stop.preempted = number == signal.SIGTERM
        restore()

    for number in previous:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        restore()
