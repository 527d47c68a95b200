"""What users write is proved where it is convex, in both packages alike, and its near twin is not, and is refuted."""

import numpy as np
import pytest
from convexity_table import Row
from engines_of_proof import ENGINES
from operations_table import JAX, SHARED, TORCH

OWN = {"jax": JAX, "torch": TORCH}
# In the plain run every kind once a package; the search for a counterexample takes longer.
PLAIN = {
    *("x > c, c = 1.0", "c >= x, c = 0.0", "huber by where, 0.3", "slopes in an array", "log cosh, stable"),
    *(
        "form of 30",
        "forms of rows",
        "leaky relu, 0.2",
        "prelu",
        "elu, 0.3",
        "celu, 0.3",
        "huber, 0.3",
        "smooth l1, 0.3",
    ),
    *("logsumexp with weights", "norm of order 3", "norms below order 1", "max pool", "max pool 2d", "mean pool"),
    *("resized", "interpolated", "sum of segments", "scatter add", "largest of segments", "largest at places"),
    *("solve", "form of a solution", "whitened", "density", "a temperature and a shift", "distance by a form"),
    *("logsumexp of some", "multiplied at places", "window with a start", "by eigenvectors", "pool of order 3"),
    *("bilinear", "distances"),
}
SEARCHED = ("x > c, c = 1.0", "norm of order 3", "form of a solution")


def cases(engine):
    shared = [case._replace(convex=bind(engine, case.convex), twin=bind(engine, case.twin)) for case in SHARED]
    return shared + OWN[engine.name]


def bind(engine, function):
    return lambda x: function(engine.xp, x)


def certify(engine, function, shape, **options):
    return engine.certify(Row("", "", "", lambda xp, x: function(x), shape), **options)


CASES = [
    pytest.param(engine, case, id=f"{engine.name}-{case.name}", marks=[pytest.mark.release] * (case.name not in PLAIN))
    for engine in ENGINES
    for case in cases(engine)
]


@pytest.mark.parametrize(("engine", "case"), CASES)
def test_it_is_proved_and_its_twin_is_not(engine, case):
    found, twin = (certify(engine, function, case.shape, segments=0) for function in (case.convex, case.twin))
    assert found.verdict == "proved", str(found)
    assert twin.verdict == "unknown", str(twin)


SEARCHES = [
    pytest.param(*case.values, id=case.id, marks=[pytest.mark.release] * (case.values[1].name not in SEARCHED))
    for case in CASES
]


@pytest.mark.parametrize(("engine", "case"), SEARCHES)
def test_the_twin_is_refuted(engine, case):
    twin = certify(engine, case.twin, case.shape)
    assert twin.verdict == "refuted" and twin.violation.gap > 0, str(twin)


def test_the_numbers_of_both_packages_are_alike():
    jax, torch = ({case.name for case in cases(engine)} for engine in ENGINES)
    assert len(jax & torch) >= len(SHARED) + 8
    assert np.all([len({case.name for case in cases(engine)}) == len(cases(engine)) for engine in ENGINES])
