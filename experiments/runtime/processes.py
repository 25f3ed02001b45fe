"""Several processes, of one or of several hosts, that compute one run together; one process alone
is the special case.

Every process does the same, but only the first writes to the run's folder. In the saving of a
checkpoint all take part, by Orbax.
"""

import os
import sys
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.runtime.errors import RunnerError, first_line

DETECT = "auto"
JOIN_SECONDS = 300
HEARTBEAT_SECONDS = 60


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Wait for the other processes of a run, before JAX is used; nothing if there is no
    coordinator, or they are together.

    Args:
        coordinator: `address:port` of the first process, or `auto`, with the other two None, to ask
            the cluster's environment.
        num_processes: how many there are.
        process_id: which one this is, from 0.

    Raises:
        RunnerError: they do not come together.
    """
    if coordinator is None or jax.distributed.is_initialized():
        return
    address = None if coordinator == DETECT else coordinator
    try:
        jax.distributed.initialize(
            address,
            num_processes,
            process_id,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise RunnerError(
            f"the processes of this run did not come together at {coordinator}: {first_line(error)}"
        ) from error


def leave(code: int) -> None:
    """After an error, end a process that is one of several, which would otherwise wait for the
    others to end as well.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def processors() -> int:
    """How many processors this process may run on, which can be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def wait_for_all(place: str) -> None:
    """Go on when all processes are at this place of the program."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(place)


def anywhere(flag: bool) -> bool:
    """Whether the flag is set in any process. All processes must ask at the same place."""
    return (
        flag
        if jax.process_count() == 1
        else bool(multihost_utils.process_allgather(np.array(flag)).any())
    )


def fetch(array: Any) -> np.ndarray:
    """The whole of an array, wherever its parts are. All processes must ask at the same place."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
