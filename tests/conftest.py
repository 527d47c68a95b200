"""What every test gets: one thread to a process, seeds, no deadlines; and a fixture for JAX in float64."""

import gc
import os
import shutil
import sys
from pathlib import Path
from unittest import mock

# Before any framework starts: workers share the cores, and torch's sums differ between one thread and two.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
os.environ.setdefault("MPLBACKEND", "Agg")

# Compiling is most of what tests in JAX cost: workers, the commands they start and later runs share what was compiled.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
# No bound there: with one, JAX looks at every file, under a lock, before it adds another. `pytest_configure` holds it.
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", "-1")
# Where an operation comes from is written beside each, by a walk over the stack; no test reads it.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

import hypothesis
import numpy as np
import pytest

# The first call of a jitted function is slow, which is no failure; the same examples each time.
hypothesis.settings.register_profile("convexmoe", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("convexmoe")


def pytest_configure(config):
    """Before the workers start, an overgrown cache of compiled programs goes."""
    cache = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    if not hasattr(config, "workerinput") and sum(file.stat().st_size for file in cache.glob("*")) > 2**31:
        shutil.rmtree(cache)


def pytest_ignore_collect(collection_path):
    """Modules that tests share hold no doctests, and must not be imported twice under two names."""
    shared = collection_path.suffix == ".py" and not collection_path.name.startswith("test_")
    return True if shared and Path(__file__).parent in collection_path.parents else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What only a release runs is slow as well, so that `-m "not slow"` leaves it out."""
    for item in items:
        if item.get_closest_marker("release"):
            item.add_marker("slow")


def pytest_collection_finish():
    """Garbage collections pass over the millions of objects of the imports: they took a fifth of the time of tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


@pytest.fixture(autouse=True)
def seeded():
    """Global generators start alike in every test, whatever ran before it."""
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="module")
def quick_compilation(request):
    """JAX compiles with little optimization in `make test`: for modules whose claims are not about rounding.

    Compiling takes about half as long. `make test-all` compiles everything as users do. Not for experts with tanh in
    float64: compiled so, some of their gradients are NaN, which is a fault of the compiler at that level.
    """
    import jax
    from compilations import QUICK
    from jax._src import compiler  # no public way, and needless: another JAX compiles as for users

    optimized = getattr(compiler, "get_compile_options", None)
    if optimized is None or "not release" not in request.config.option.markexpr:
        yield
        return

    def quick(*args, env_options_overrides=None, **options):
        return optimized(*args, env_options_overrides=QUICK | (env_options_overrides or {}), **options)

    with mock.patch.object(compiler, "get_compile_options", quick):
        yield
    jax.clear_caches()  # another module compiles its own


@pytest.fixture(scope="module")
def few_folds():
    """`convexmoe fit` measures errors on two folds of equal size: half the models to fit, and fewer compilations."""
    from interop.command import dataset

    with mock.patch.object(dataset, "FOLDS", 2):
        yield


@pytest.fixture(scope="module")
def no_picture():
    """`convexmoe fit` draws no report.png, which takes longer than a short fit: for modules that do not look at it."""
    from interop.command import experiment

    with mock.patch.object(experiment, "draw_report", lambda report, path: ""):
        yield


@pytest.fixture
def x64():
    """JAX in float64 inside this test."""
    import jax

    with jax.enable_x64(True):
        yield
