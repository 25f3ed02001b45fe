"""Programs for accelerators that are not here: the vendors' own compilers need a description of a
device, and no device.

NVIDIA's is in JAX's CUDA plugin, Google's in libtpu; see `INSTALL`. What they make is what such a
device would run, but for choices that are tuned on the device itself, of algorithms of library
calls.
"""

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import jax
from jax.experimental import topologies

from experiments.runtime.errors import RunnerError, first_line

INSTALL = {
    extra: f'pip install "jax[{extra}]=={jax.__version__}"' for extra in ("cuda13-local", "tpu")
}
# An H100 SXM as XLA describes it (openxla/xla, xla/backends/gpu/target_config/specs), where it
# decides about kernels.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
# Slices of each kind of TPU, by their number of chips.
SLICES = {
    "v5e": {1: "1x1", 4: "2x2", 8: "2x4"},
    "v5p": {1: "1x1x1", 4: "2x2x1", 8: "2x2x2"},
    "v6e": {1: "1x1", 4: "2x2", 8: "2x4"},
}
# Without these libtpu asks a Google Cloud machine which TPU it has, and lets only one process in,
# as if it were to use it.
TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def described_devices(accelerator: str, chips: int = 1) -> Sequence[Any]:
    """Devices that can be compiled for, and for nothing else.

    Args:
        accelerator: `h100`, or one of `SLICES`.
        chips: H100 in one host, any number; of a TPU those of `SLICES`.

    Raises:
        RunnerError: there is no compiler for them here; it says what to install.
    """
    try:
        if accelerator == "h100":
            extra = "cuda13-local"
            return topologies.get_topology_desc(
                "h100", "cuda", target_config=H100, topology=f"1x{chips}x1"
            ).devices
        extra = "tpu"
        for variable, value in TPU_ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        return topologies.get_topology_desc(
            f"{accelerator}:{SLICES[accelerator][chips]}", "tpu"
        ).devices
    except (RuntimeError, NotImplementedError) as error:
        raise RunnerError(
            f"no compiler for {accelerator} here ({first_line(error)}); it comes with: "
            f"{INSTALL[extra]}"
        ) from error


def compile_for(device: Any, function: Callable, *arguments: Any) -> Any:
    """Compile `function(*arguments)` for one described device; of the arguments, arrays or not,
    only shapes and dtypes count.
    """
    sharding = jax.sharding.SingleDeviceSharding(device)
    given = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), arguments
    )
    return jax.jit(function).lower(*given).compile()


@contextlib.contextmanager
def kernels_for_h100() -> Iterator[None]:
    """Within this context hand-written kernels can be lowered: newer JAX asks the backend which GPU
    that is for.
    """
    triton: Any = importlib.import_module("jax.experimental.pallas.triton")
    if not hasattr(triton, "get_gpu_info_from_version"):  # older JAX does not ask
        yield
        return
    registration: Any = importlib.import_module("jax._src.pallas.triton.pallas_call_registration")
    described = triton.get_gpu_info_from_version(triton.GpuVersion.H100)
    with mock.patch.object(registration.gpu_info_lib, "get_gpu_info", lambda *_, **__: described):
        yield
