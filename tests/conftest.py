import os

from jaxlib.version import __version_info__ as jaxlib_version

# The tests mostly compile. jaxlib 0.10 does so in half of the time without its newer emitters; 0.11 has no such flag.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        *(["--xla_cpu_use_fusion_emitters=false"] if jaxlib_version < (0, 11) else []),
    ]
)
# The threads on which XLA runs what is independent in a program, by default as many as there are cores. A collective
# holds its thread until all devices have come: with fewer threads than eight devices need, they wait for ever.
os.environ["NPROC"] = "64"

import jax
import pytest
from jaxtyping import install_import_hook

# Shapes in annotations are checked while the tests run. The modules that check user input themselves are left out:
# their errors are what the tests look at.
CHECKED = ("_recursion", "_segment")
_hook = install_import_hook([f"hyprjax.{name}" for name in CHECKED], "beartype.beartype")


def pytest_configure():
    jax.config.update("jax_disable_most_optimizations", True)  # the tests mostly compile: twice as fast
    with _hook:
        import hyprjax  # noqa: F401


@pytest.fixture(autouse=True, scope="module")
def _release():
    """Lets go of what a module compiled: a process has room for some ten thousand compiled functions only."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def _float64():
    """Claims about gradients are tested in float64; tests of float32 behaviour ask for it by dtype."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
