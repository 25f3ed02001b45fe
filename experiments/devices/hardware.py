"""What a command may say of the hardware: how many devices and processes there are, and how they
share the work.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from experiments.devices.parallel import Devices, Execution, Mode
from experiments.runtime import processes
from experiments.runtime.errors import UsageError, first_line
from experiments.runtime.fields import check_not_negative, check_positive, check_positive_or_none


@dataclasses.dataclass(frozen=True)
class Hardware:
    """On what to compute. A run's result does not depend on it, but for rounding."""

    parallel: Mode = "jit"
    """How the devices share a step."""
    devices: int | None = None
    """How many devices, of all processes; the default is as many as divide the batch.

    The CPU counts as one per core.
    """
    model_axis: int = 1
    """So many devices share the parent types of the convolutional capsule layers, where these are
    too big for one.
    """
    accumulate: int = 1
    """A device takes its share of a batch in so many parts, one after the other, where it is too
    big to take at once.
    """
    coordinator: str | None = None
    """For several processes: address:port of the first, the same for all; or `auto`, where the
    cluster says all (Slurm, TPU).
    """
    num_processes: int | None = None
    """How many processes; not with `auto`."""
    process_id: int | None = None
    """Which of them this is, from 0; not with `auto`."""

    def __post_init__(self):
        check_positive(self, "model_axis", "accumulate")
        check_positive_or_none(self, "devices")
        if self.parallel == "pmap" and (self.model_axis > 1 or self.coordinator):
            raise ValueError(
                "pmap shares the batch among the devices of one process; give --parallel jit for "
                "more"
            )
        numbers = (self.num_processes, self.process_id)
        if self.coordinator in (None, processes.DETECT):
            if numbers != (None, None):
                raise ValueError(
                    "num_processes and process_id go with an address as coordinator; got "
                    f"{self.coordinator}"
                )
        elif None in numbers:
            raise ValueError("a coordinator needs num_processes and process_id")
        if self.num_processes is not None and self.process_id is not None:
            check_positive(self, "num_processes")
            check_not_negative(self, "process_id")
            if self.process_id >= self.num_processes:
                raise ValueError(
                    f"process_id must be less than num_processes, {self.num_processes}; got "
                    f"{self.process_id}"
                )

    def start(self) -> None:
        """Get JAX ready.

        Raises RunnerError if the processes do not come together, and UsageError as `all_devices`.
        """
        local = None if self.devices is None else max(1, self.devices // (self.num_processes or 1))
        split_cpu(local)
        processes.join(self.coordinator, self.num_processes, self.process_id)
        all_devices()

    def execution(self, batch_size: int) -> Execution:
        """The devices for a batch, and how they share it.

        Raises UsageError as `choose_devices` does.
        """
        devices = choose_devices(batch_size, self.devices, self.model_axis, self.accumulate)
        return Execution(devices, self.parallel, self.model_axis, self.accumulate)


def choose_devices(
    batch_size: int, requested: int | None = None, model_axis: int = 1, accumulate: int = 1
) -> Devices:
    """The devices for a batch: as many as requested, or else as many as there are and divide it.

    Args:
        batch_size: of all devices.
        requested: how many devices, a multiple of `model_axis`.
        model_axis: so many devices see the same examples.
        accumulate: in how many parts they take them.

    Raises:
        UsageError: there are not as many as requested, or they cannot share the batch evenly.
    """
    available, num_processes, local = all_devices(), jax.process_count(), jax.local_device_count()
    if requested is None and num_processes == 1:
        fitting = [
            n
            for n in range(model_axis, len(available) + 1, model_axis)
            if batch_size % (n // model_axis * accumulate) == 0
        ]
        requested = max(fitting, default=model_axis)
    elif requested is None:
        requested = len(available)
    check_number(available, requested)
    there_are = f"there are {len(available)} devices ({describe(available)})"
    if num_processes > 1 and requested < len(available):
        raise UsageError(
            f"{there_are} in {num_processes} processes, of which all take part; {requested} were "
            "requested"
        )
    if requested % model_axis or (num_processes > 1 and local % model_axis):
        of_each = f", {local} in each process," if num_processes > 1 else ""
        raise UsageError(
            f"{requested} devices{of_each} cannot be divided into groups of {model_axis}, the "
            "model axis"
        )
    shares = requested // model_axis * accumulate
    if batch_size % shares:
        below = batch_size - batch_size % shares
        nearest = f"{below} and {below + shares}" if below else f"{shares}"
        parts = f" in {accumulate} parts" if accumulate > 1 else ""
        among = (
            f"{requested // model_axis} groups of devices"
            if model_axis > 1
            else f"{requested} devices"
        )
        raise UsageError(
            f"a batch of {batch_size} cannot be divided among {among}{parts}; the nearest that "
            f"can: {nearest}"
        )
    return available[:requested]


@contextlib.contextmanager
def programs_kept_in(folder: Path) -> Iterator[None]:
    """Within this context JAX keeps what it compiles in a folder, and takes it from there, unless
    the user has named one.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        yield
        return
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()


def start_jax(count: int | None = None) -> Devices:
    """Get JAX ready in a process that is alone, and see that there are `count` devices, if so many
    are needed.

    Returns:
        All devices.

    Raises:
        UsageError: there are fewer, or none; see `all_devices`.
    """
    split_cpu(count)
    available = all_devices()
    check_number(available, count or len(available))
    return available


def all_devices(platform: str | None = None) -> Devices:
    """All devices of a platform, or of the one that JAX takes.

    Raises UsageError: JAX has been told to use one that is not here.
    """
    try:
        return jax.devices(platform)
    # jaxlib raises the one, and jax the other where it knows the platform but has no plugin for it.
    except (RuntimeError, AssertionError) as error:
        told = jax.config.values["jax_platforms"]
        asked = f"with JAX_PLATFORMS={told}, " if told else ""
        wanted = f"{platform} device" if platform else "device"
        why = f" ({first_line(error)})" if str(error) else ""
        raise UsageError(
            f"{asked}JAX finds no {wanted} here{why}; without JAX_PLATFORMS it takes what there is"
        ) from error


def check_number(available: Devices, requested: int) -> None:
    """Raise UsageError unless so many devices can be had."""
    if not 1 <= requested <= len(available):
        raise UsageError(
            f"there are {len(available)} devices ({describe(available)}); {requested} were "
            "requested"
        )


def split_cpu(count: int | None = None) -> None:
    """Show the CPU to JAX as `count` devices, by default one per core, since a routing kernel runs
    on one core.

    Settings that the user has made in the environment stay; so do the devices of a process that has
    used JAX already, such as a notebook, since they can no longer change.
    """
    by_flag = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not by_flag and "JAX_NUM_CPU_DEVICES" not in os.environ:
        with contextlib.suppress(RuntimeError):  # JAX has been used
            jax.config.update("jax_num_cpu_devices", count or processes.processors())


def describe(devices: Devices) -> str:
    """For example `2 x cpu`."""
    return f"{len(devices)} x {devices[0].device_kind}"
