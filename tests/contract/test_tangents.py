"""`max_affine`: nowhere above the hull, touching at its points; a control with a wrong slope is caught."""

import backends
import cases
import numpy as np
import pytest

from convexmoe.minimization.scalar_hull import ScalarHull

pytestmark = pytest.mark.usefixtures("quick_compilation")

HULLS = ("default", "relu", "huber_relu", "smooth_plain", "gate_private", "one_petal", "strong")


def made(backend, name, seed=0):
    fields = cases.HULLS[name] | {"normalization": {k: v[:5] for k, v in cases.UNITS.items()}}
    if fields["out_dim"] != 2:
        units = {k: v[: fields["out_dim"]] if k.startswith("output") else v for k, v in cases.UNITS.items()}
        fields = fields | {"normalization": units}
    return backend.model(fields, cases.random_weights(fields, seed))


def rows(count, seed, size=1.0, around=0.0):
    """Random rows in original units, `size` deviations around others."""
    rng = np.random.default_rng(seed)
    around = around if size < 1 else np.array(cases.UNITS["input_mean"])
    return around + size * rng.normal(size=(count, 5)) * cases.UNITS["input_scale"]


def excess(backend, model, found, at):
    """The most by which the tangents are above the hull, and the most by which they are below it."""
    output = backend.apply(model, at)[:, 0]
    below = (at @ backend.numpy(found.slopes).T + backend.numpy(found.intercepts)).max(axis=1)
    return (below - output).max(), (output - below).max()


@pytest.mark.parametrize("name", HULLS)
def test_it_is_below_and_touches(backend, name):
    model, points = made(backend, name), rows(7, 0)
    others = np.concatenate([rows(300, 1), rows(7, 2, 0.05, points)])
    found = backend.package.max_affine(model, points, others, output=0)
    above, below = excess(backend, model, found, others)
    assert above <= 1e-10 and abs(below - float(found.gap)) <= 1e-9
    own = backend.package.max_affine(model, points, output=0)
    assert 0 <= float(own.gap) <= 1e-6 and found.slopes.shape == (7, 5)


def test_control_a_wrong_slope_is_caught(backend, replace):
    kept = ScalarHull.minorant
    replace(ScalarHull, "minorant", lambda *arguments: (kept(*arguments)[0], 1.2 * kept(*arguments)[1]))
    model = made(backend, "default")
    found = backend.package.max_affine(model, rows(7, 0), output=0)
    assert excess(backend, model, found, rows(7, 2, 0.05, rows(7, 0)))[0] > 1e-6


def test_the_packages_agree_and_say_the_same():
    texts, values = [], []
    for backend in backends.BACKENDS:
        model = made(backend, "default")
        found = backend.package.max_affine(model, rows(7, 0), rows(9, 1), output=1)
        values.append([backend.numpy(part) for part in found])
        caught = []
        for points in (np.zeros((0, 5)), np.zeros((2, 3)), np.full((1, 5), np.nan), None, [["a", "b"]]):
            with pytest.raises((ValueError, TypeError)) as fault:
                backend.package.max_affine(model, points, output=0)
            caught.append(str(fault.value))
        weights = cases.random_weights(cases.HULLS["default"])
        weights["shifts"] = weights["shifts"] * np.nan
        with pytest.raises(ValueError, match=r"max_affine\.model: expected finite weights; got inf or nan"):
            backend.package.max_affine(backend.model(cases.HULLS["default"], weights), rows(1, 0), output=0)
        texts.append(caught)
    assert texts[0] == texts[1]
    for one, other in zip(*values, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
