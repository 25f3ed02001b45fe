"""The test session: a CPU that shows itself as two devices, and both float precisions at once."""

import os

if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2").strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # after the environment, which it reads when it is imported
import numpy as np
import pytest


@pytest.fixture
def x64():
    """The test runs with float64 enabled; the session's default is float32."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """The test runs in float32, and again in float64."""
    with jax.enable_x64(request.param == "float64"):
        yield np.dtype(request.param)
