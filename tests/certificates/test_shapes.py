"""Contexts, signs of slopes, concave and bounded hulls: proved in both packages, and broken ones are not."""

import cases
import numpy as np
import pytest
from backends import BACKENDS

from convexmoe.hull import parameters

pytestmark = pytest.mark.usefixtures("quick_compilation")

QUICK = ("context_units", "concave", "nonnegative", "all_rising")
WORDS = {1: "nondecreasing", 0: "unknown", -1: "nonincreasing"}
each_package = pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)


def model_and_arguments(backend, name, shape=(1,)):
    fields = cases.SHAPED[name]
    given = cases.random_arguments(fields, shape)
    return backend.model(fields, cases.random_weights(fields), "float32"), [
        backend.array(part.astype(np.float32)) for part in given
    ]


def release_but_for(quick, names):
    """The names, those that `make test` leaves out marked."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.release) for name in names]


@each_package
@pytest.mark.parametrize(
    "name", release_but_for(("context_units", "concave", "nonnegative", "all_rising"), cases.SHAPED)
)
def test_a_shape_is_proved_for_all_parameters_and_contexts(name, backend):
    hull, given = model_and_arguments(backend, name)
    monotone = hull.config.monotone
    found = backend.package.certify(hull, tuple(given), per_input=monotone is not None)
    assert (found.verdict, found.strength) == ("proved", "structural"), str(found)
    [output] = found.outputs
    assert output.weakest == found.curvature == hull.config.curvature and f"{found.curvature} in" in found.reason
    if hull.config.nonnegative:
        assert set(output.sign.flat) == {"negative" if hull.config.is_concave else "positive"}
    if monotone is not None:
        wanted = np.broadcast_to([WORDS[sign] for sign in monotone], output.per_input.shape)
        assert (output.per_input == wanted).all(), output.per_input


@each_package
@pytest.mark.parametrize("name", release_but_for(("context",), ("context", "context_units", "all")))
@pytest.mark.parametrize("case", ["many rows", "one context", "folded", "at"])
def test_every_path_of_a_hull_is_proved(case, name, backend):
    hull, (x, c) = model_and_arguments(backend, name, (1,) if case in ("folded", "at") else (30,))
    if case == "at":
        hull, given = hull.at(c[0]), (x,)
    else:
        hull, given = hull.fold() if case == "folded" else hull, (x, c[0] if case == "one context" else c)
    found = backend.package.certify(hull, given)
    assert (found.verdict, found.curvature) == ("proved", cases.SHAPED[name].get("curvature", "convex")), str(found)


@each_package
def test_nothing_is_claimed_of_the_context_nor_of_both(backend):
    hull, given = model_and_arguments(backend, "context")
    for argnum in (1, (0, 1)):
        found = backend.package.certify(hull, tuple(given), argnum=argnum, segments=2000)
        assert found.verdict in ("refuted", "unknown") and found.outputs[0].weakest == "unknown"


@each_package
def test_an_expert_takes_its_context_from_the_batch(backend):
    hull, given = model_and_arguments(backend, "context", (1,) if backend.name == "torch" else ())
    expert = backend.package.HullExpert(hull)
    assert backend.package.certify(expert, tuple(given)).verdict == "proved"


@each_package
def test_the_curvature_that_is_asked_for(backend):
    certify, x = backend.package.certify, backend.array(np.ones(3, np.float32))
    assert certify(lambda x: -(x**2), x, curvature="concave").verdict == "proved"
    found = certify(lambda x: x**2, x, curvature="concave")
    assert found.verdict == "refuted" and "not concave" in found.reason and "below the chord" in str(found)
    segment = found.violation
    chord = segment.weight * segment.value_left + (1 - segment.weight) * segment.value_right
    assert segment.gap > 0 and segment.value == pytest.approx(chord - segment.gap)
    assert segment.value_left == pytest.approx(segment.left[segment.output] ** 2)
    hull, (rows,) = model_and_arguments(backend, "concave")
    assert certify(hull, rows, curvature="convex").verdict == "refuted"
    with pytest.raises(ValueError, match=r"certify.curvature: expected one of \['convex', 'concave'\]; got 'flat'"):
        certify(hull, rows, curvature="flat")


# Controls: the same models with one fault.


def scale_of_any_sign(package, monkeypatch):
    operations = package.hull.forward.OPERATIONS
    monkeypatch.setattr(package.hull.forward, "OPERATIONS", operations._replace(softplus=lambda u: u - 2.0))


def context_that_sees_x(package, monkeypatch):
    rows_in_context = package.hull.forward.rows_in_context

    def broken(params, config, x_ND, leading, context, operations):
        context = context + (x_ND**2)[..., : config.context_dim].reshape(*leading, config.context_dim)
        return rows_in_context(params, config, x_ND, leading, context, operations)

    monkeypatch.setattr(package.hull.forward, "rows_in_context", broken)


def factor_of_any_sign(package, monkeypatch):
    forward = package.hull.forward
    add_readout = forward.add_readout

    def broken(y_NO, x_ND, heads, config):
        return add_readout(y_NO, x_ND, heads, config) - 50.0 * heads["readout"]["shifts"][..., :1] * y_NO

    monkeypatch.setattr(forward, "add_readout", broken)


FAULTS = (scale_of_any_sign, context_that_sees_x, factor_of_any_sign)


@each_package
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_broken_context_is_caught(fault, backend, monkeypatch):
    hull, (x, c) = model_and_arguments(backend, "context", (cases.ROWS,))
    find = backend.package.find_violation
    assert find(hull, (x, c), segments=20_000) is None
    fault(backend.package, monkeypatch)
    found = backend.package.certify(hull, (x[:2], c[:2]), segments=0)
    assert found.verdict == "unknown" and found.failed is not None
    segment = find(hull, (x, c), segments=20_000)
    assert segment is not None and segment.left.shape == (5,) and segment.dtype == "float64"
    assert np.isclose(backend.numpy(c), segment.context).all(axis=1).any()
    ends = np.stack([segment.left, segment.right]).astype(np.float32)
    contexts = np.stack([segment.context] * 2).astype(np.float32)
    many = (backend.array(np.tile(part, (8, 1))) for part in (ends, contexts))  # few rows take another path
    y = backend.numpy(hull(*many))[:2]
    assert np.allclose(y[:, segment.output], [segment.value_left, segment.value_right], rtol=1e-3, atol=1e-3)


@each_package
def test_a_weight_of_the_wrong_sign_is_caught(backend, monkeypatch):
    hull, given = model_and_arguments(backend, "rising")
    signed_weight, turned = parameters.signed_weight, [(-1.0) ** (j == 2) for j in range(5)]

    def broken(raw, signs, operations, axis=0, offset=0.0):
        shape = (-1, *[1] * (len(raw.shape) - 1 - axis))
        weight = signed_weight(raw, signs, operations, axis, offset)
        return weight * operations.constant(turned, raw).reshape(shape)

    monkeypatch.setattr(parameters, "signed_weight", broken)
    found = backend.package.certify(hull, tuple(given), per_input=True, segments=0)
    assert found.verdict == "proved"  # still convex
    assert (found.outputs[0].per_input != np.array([WORDS[sign] for sign in cases.SIGNS])).any()


@each_package
def test_a_forgotten_bound_and_a_forgotten_sign_are_caught(backend, monkeypatch):
    hull, given = model_and_arguments(backend, "nonnegative")
    monkeypatch.setattr(backend.package.hull.forward, "softplus", lambda u: u)
    assert "positive" not in backend.package.certify(hull, tuple(given)).outputs[0].sign
    hull, given = model_and_arguments(backend, "concave")
    monkeypatch.setattr(backend.package.hull.forward, "bent_part", lambda rows, y_NO: y_NO)
    assert backend.package.certify(hull, tuple(given)).verdict == "refuted"
    assert backend.package.find_violation(hull, backend.array(np.eye(5, dtype=np.float32)), segments=5000) is not None


@each_package
def test_a_concave_hull_has_no_violation_and_a_convex_one_has(backend):
    hull, (x,) = model_and_arguments(backend, "concave", (cases.ROWS,))
    find = backend.package.find_violation
    assert find(hull, x, segments=5000) is None and find(hull, x, segments=5000, curvature="convex") is not None


@each_package
def test_contexts_that_do_not_fit_are_refused(backend):
    hull, (x, c) = model_and_arguments(backend, "context", (cases.ROWS,))
    find = backend.package.find_violation
    with pytest.raises(TypeError, match=r"expected points, or \(points, contexts\); got a tuple of 3"):
        find(hull, (x, c, c))
    with pytest.raises(ValueError, match=r"find_violation.contexts: expected float32 \[contexts >= 1, context_dim\]"):
        find(hull, (x, c[0]))
    with pytest.raises(TypeError, match=r"VectorHull.context: expected an array"):
        find(hull, x)
