"""`minimize`, `maximize`, `max_affine`, `conjugate` and `predict` of hulls with a context; controls are caught."""

import backends
import cvxpy as cp
import numpy as np
import pytest
import shaped_hulls
from shaped_hulls import LOWER, OUTPUT, POLYTOPE, SHAPES, UPPER, best, bound, contexts, contradictions, shaped, values

from convexmoe.minimization import outputs
from convexmoe.minimization.maximum import find_maximum
from convexmoe.minimization.minimum import find_minimum, minimize_unchecked, solve_unchecked

pytestmark = pytest.mark.usefixtures("quick_compilation")

IN_CONTEXT = [name for name, options in SHAPES.items() if "context_dim" in options]
TORCH = backends.BACKENDS[1]


SETS = {  # of each case one that searches faces, asks for directions, or has rows of its own
    "context": "open",
    "deep_private": "polytope",
    "monotone": "open",
    "concave": "simplex",
    "nonnegative": "ball",
    "everything": "open",
}


def made(package, kind):
    """A set of a kind, of "open" one without a bound on two sides."""
    arguments = {
        "box": (LOWER, UPPER),
        "open": ([-np.inf, -4.0], [np.inf, 1.0]),
        "ball": ([0.0, -1.0], 2.0),
        "simplex": (2.0,),
        "polytope": POLYTOPE,
    }[kind]
    return getattr(package, {"open": "Box"}.get(kind, kind.title()))(*arguments)


def on_grid(backend, model, C):
    """The best values on a grid, one a context."""
    take = np.max if model.config.is_concave else np.min
    return np.array([take(values(backend, model, shaped_hulls.grid(), c)) for c in C])


@pytest.mark.parametrize("name", IN_CONTEXT)
def test_each_context_is_a_problem(backend, name):
    for seed in range(2 if backend is TORCH else 1):
        model = shaped(backend, name, seed)
        C = contexts(model, 4, seed)
        found = best(backend, model, backend.package.Box(LOWER, UPPER), C)
        assert (found["status"] == 0).all() and found["x"].shape == (4, 2)
        assert (found["gap"] <= 1e-6 * (1 + np.abs(found["value"]))).all()
        again = np.array([values(backend, model, x[None], c)[0] for x, c in zip(found["x"], C, strict=True)])
        np.testing.assert_allclose(again, found["value"], rtol=1e-9, atol=1e-9)
        known = on_grid(backend, model, C)
        assert contradictions(model, found, known) == 0
        sign = -1 if model.config.is_concave else 1
        assert (sign * found["value"] <= sign * known + found["gap"]).all()
        assert np.ptp(known) > 0.01  # contexts matter


@pytest.mark.parametrize("name", IN_CONTEXT)
def test_clarabel_finds_the_same(name):
    for seed in range(2):
        model = shaped(TORCH, name, seed)
        C = contexts(model, 2, seed)
        found = best(TORCH, model, TORCH.package.Box(LOWER, UPPER), C, tol=1e-8)
        for k, c in enumerate(C):
            _, problem = bound(model, cp.Variable(2), c)
            problem.solve(solver=cp.CLARABEL)
            assert abs(problem.value - found["value"][k]) <= found["gap"][k] + 1e-6 * (1 + abs(problem.value))


@pytest.mark.parametrize("name", IN_CONTEXT)
def test_a_batch_is_its_single_problems_and_those_the_plain_hulls(backend, name):
    model = shaped(backend, name, 5)
    C, function = contexts(model, 2), find_maximum if model.config.is_concave else find_minimum
    with backend.precision("float64"):
        plain, folded = [model.at(backend.array(c)) for c in C], model.fold()

    def solve(hull, context):
        constraints = made(backend.package, SETS[name])
        found = solve_unchecked("minimize", function, hull, constraints, None, 1e-6, OUTPUT, context)
        return [backend.numpy(part) for part in found]

    many = solve(folded, C)
    for k in range(2):
        _, value, _, gap, _, status, _ = (part[k] for part in many)
        one, same = solve(model, C[k]), solve(plain[k], None)
        assert status == one[5] == same[5] and status in (0, 3)
        if status == 0:
            assert abs(one[1] - same[1]) <= 1e-9 * (1 + abs(same[1]))
            assert abs(value - one[1]) <= gap + one[3]


def test_contexts_sets_and_starts_broadcast():
    model = shaped(TORCH, "context")
    C, upper = contexts(model, 3), np.stack([UPPER, UPPER + 1])[:, None]
    found = best(TORCH, model, TORCH.package.Box(LOWER, upper), C, x0=np.zeros((3, 2)))
    assert found["x"].shape == (2, 3, 2) and found["gap"].shape == (2, 3)
    one = best(TORCH, model, TORCH.package.Box(LOWER, UPPER + 1), C[2])
    assert abs(found["value"][1, 2] - one["value"]) <= found["gap"][1, 2] + one["gap"]


def test_control_a_scale_that_may_be_negative_is_caught(monkeypatch):
    """The hull is then not convex at some contexts, and a bound is above values on a grid."""
    from convexmoe_torch.hull import forward

    def missed():
        count = 0
        for seed in range(3):
            model = shaped(TORCH, "context", seed)
            C = 4 * contexts(model, 6, seed)
            found = minimize_unchecked(model, TORCH.package.Box(LOWER, UPPER), output=OUTPUT, context=C)
            record = {"bound": TORCH.numpy(found.lower_bound)}
            count += contradictions(model, record, on_grid(TORCH, model, C))
        return count

    assert missed() == 0
    for module in (outputs, forward):
        monkeypatch.setattr(module, "OPERATIONS", module.OPERATIONS._replace(softplus=lambda u: u))
    assert missed() > 0


def test_control_a_forgotten_scale_is_caught(backend, replace):
    kept = outputs.at_contexts

    def forget(*arguments):
        weights = kept(*arguments)
        trunk = {k: {n: part for n, part in layer.items() if n != "scale"} for k, layer in weights["trunk"].items()}
        return weights | {"trunk": trunk}

    replace(outputs, "at_contexts", forget)
    model = shaped(backend, "context")
    C = contexts(model, 4)
    found = best(backend, model, backend.package.Box(LOWER, UPPER), C)
    again = np.array([values(backend, model, x[None], c)[0] for x, c in zip(found["x"], C, strict=True)])
    assert np.abs(again - found["value"]).max() > 1e-3


def test_tangents_and_predictions_at_a_context(backend):
    model = shaped(backend, "deep_private")
    C, points = contexts(model, 3), shaped_hulls.grid(5)
    found = backend.package.max_affine(model, points, output=OUTPUT, context=C[1])
    rows = shaped_hulls.grid()
    planes = (rows @ backend.numpy(found.slopes).T + backend.numpy(found.intercepts)).max(axis=1)
    assert (planes <= values(backend, model, rows, C[1]) + 1e-9).all() and 0 <= float(found.gap) <= 1e-6
    predicted = backend.package.predict(model, rows[:, None], C)
    assert predicted.shape == (len(rows), 3, 2)
    for k, c in enumerate(C):
        np.testing.assert_allclose(predicted[:, k, OUTPUT], values(backend, model, rows, c), rtol=1e-9, atol=1e-9)
        np.testing.assert_array_equal(
            backend.package.predict(model, rows, c), backend.package.predict(model, rows, [c])
        )


def test_conjugates_in_contexts(backend):
    model = shaped(backend, "context", strong_convexity=0.3, nonnegative=True)
    C = contexts(model, 3)
    y = np.random.default_rng(3).normal(size=(3, 2))
    with backend.precision("float64"):
        model = model.fold()
        found = backend.package.conjugate(model, backend.array(y), output=OUTPUT, context=C)
        one = [backend.package.conjugate(model, backend.array(y), output=OUTPUT, context=c) for c in C]
        x = backend.numpy(backend.package.inverse_gradient(model, backend.array(y), output=OUTPUT, context=C))
    assert np.abs(x - backend.numpy(found.x)).max() == 0
    for k, c in enumerate(C):
        gap = float(found.gap[k])
        assert abs(float(one[k].value[k]) - float(found.value[k])) <= gap + float(one[k].gap[k])
        rows = shaped_hulls.grid()
        known = np.max(rows @ y[k] - values(backend, model, rows, c))
        assert known <= float(found.value[k]) + gap + 1e-9
        at = values(backend, model, x[k][None], c)[0]
        assert abs(x[k] @ y[k] - at - float(found.value[k])) <= 1e-9 * (1 + abs(at))


MESSAGES = {
    "none": ("context", {}, "minimize.context: expected numbers, [..., context_dim=2]; got None. Pass it: "),
    "needless": ("nonpositive", {"context": [0.0]}, "maximize.context: expected None for a hull without a context; "),
    "width": ("context", {"context": [1.0]}, "minimize.context: expected last axis context_dim=2; got float64[1]. "),
    "nan": ("context", {"context": [np.nan, 0.0]}, "minimize.context: expected finite numbers; got inf or nan. "),
    "axes": (
        "concave",
        {"context": np.zeros((4, 3))},
        "maximize.context: expected [..., context_dim=3], leading axes ",
    ),
}


@pytest.mark.parametrize("fault", MESSAGES)
def test_faults_of_contexts_are_told(backend, fault):
    name, options, text = MESSAGES[fault]
    upper = np.stack([UPPER] * 3) if fault == "axes" else UPPER
    with pytest.raises((TypeError, ValueError)) as caught:
        best(backend, shaped(backend, name), backend.package.Box(LOWER, upper), **options)
    assert str(caught.value).startswith(text)
