"""Strict JAX for every test: no silent promotion, four fake devices, a fixed platform."""

import gc
import os
import shutil
import tempfile
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile the same programs again and again, also in processes they start: once is enough.
_CACHE = "JAX_COMPILATION_CACHE_DIR"
_OURS = _CACHE not in os.environ  # the first process of a session; workers inherit the environment
os.environ.setdefault(_CACHE, tempfile.mkdtemp(prefix="springroll-tests-"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# JAX does not write an entry at once, so that a process can meet half of another's, or of one that
# was killed. It says so and compiles for itself; neither tests nor what they start should stumble.
os.environ.setdefault("PYTHONWARNINGS", "ignore:Error reading persistent:UserWarning")

# Most programs of the tests run once or twice, so that compiling takes most of the time: LLVM does
# its least, here and in processes that tests start. With JAX_DISABLE_MOST_OPTIMIZATIONS=0 the suite
# runs as users compile; tests of what a compiled program holds ask for `optimized`.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# XLA's older emitter of kernels takes a third less time for all of it. An XLA without it, such as
# that of jaxlib 0.12, would not start. The slow suite compiles with the one that users have.
_EMITTER = "--xla_cpu_use_fusion_emitters=false"
_before = os.environ.get("XLA_FLAGS", "")
_quick = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"
_known = tuple(int(part) for part in version("jaxlib").split(".")[:2]) < (0, 11)
if _quick and _known and _EMITTER not in _before:
    os.environ["XLA_FLAGS"] = f"{_before} {_EMITTER}".strip()

import jax  # noqa: E402
import pytest  # noqa: E402

collect_ignore_glob = ["golden/make_*.py"]  # scripts that need torch, run by hand

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.devices()  # from here on no test can change how many there are


@pytest.fixture(scope="module", autouse=True)
def _let_go_of_programs():
    """Thousands of compiled programs would take gigabytes by the end of the suite."""
    yield
    jax.clear_caches()


@pytest.fixture
def optimized():
    """The compiler as users run it, but for its emitter of kernels in the quick suite."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def pytest_collection_finish():
    gc.freeze()  # all that was imported stays: the collector need not look at it again and again


def pytest_unconfigure():
    if _OURS:
        shutil.rmtree(os.environ[_CACHE], ignore_errors=True)
