"""Programs for accelerators that are not here: the vendors' own compilers need a description of a device, and no device.

NVIDIA's is in JAX's CUDA plugin, Google's in libtpu; see `INSTALL`. What they make is what such a device would run, but for choices
that are tuned on the device itself, of algorithms of library calls.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import topologies

from experiments.errors import RunnerError, first_line

INSTALL = {
    "cuda": f"pip install --no-deps jax-cuda13-plugin=={jax.__version__} jax-cuda13-pjrt=={jax.__version__}",
    "tpu": "pip install --no-deps libtpu",
}
# An H100 SXM as XLA describes it (openxla/xla, xla/backends/gpu/target_config/specs), where it decides about kernels.
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
# Without these libtpu asks a Google Cloud machine which TPU it has.
TPU_ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}


def h100_devices(count: int = 1) -> Sequence[Any]:
    """So many H100 in one host. Raises RunnerError, with what to install, where the compiler is missing."""
    return _described("cuda", "h100", target_config=H100, topology=f"1x{count}x1")


def tpu_devices(name: str) -> Sequence[Any]:
    """The TPU cores of a slice, for example `v5e:2x2`; otherwise as `h100_devices`."""
    for variable, value in TPU_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    return _described("tpu", name)


def _described(platform: str, name: str, **options: Any) -> Sequence[Any]:
    """The devices of a topology."""
    try:
        return topologies.get_topology_desc(name, platform, **options).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise RunnerError(
            f"there is no compiler for {platform} {name} here ({first_line(error)}); it needs: {INSTALL[platform]}"
        ) from error


def compile_for(device: Any, function: Callable, *arguments: Any) -> Any:
    """Compile `function(*arguments)` for one described device; of the arguments, arrays or not, only shapes and dtypes count."""
    sharding = jax.sharding.SingleDeviceSharding(device)
    given = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), arguments)
    return jax.jit(function).lower(*given).compile()
