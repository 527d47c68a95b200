"""Programs of hulls with a context, concave and non-negative ones: rules, values, new contexts without compiling."""

import cvxpy as cp
import numpy as np
import pytest
from backends import BACKENDS
from shaped_hulls import OUTPUT, SHAPES, best, bound, contexts, grid, shaped, values

from interop import set_context, set_weights, to_cvxpy
from interop.cvxpy.expressions import ConstantProgram

pytestmark = pytest.mark.usefixtures("quick_compilation")

TORCH = BACKENDS[1]
IN_CONTEXT = [name for name, options in SHAPES.items() if "context_dim" in options]


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def backend(request):
    return request.param


@pytest.mark.parametrize("name", SHAPES)
def test_rules_and_values_are_those_of_the_model(backend, name, tmp_path):
    model, rows = shaped(backend, name), grid(3)
    C = contexts(model, 2)
    context, concave = C[1] if C.size else None, model.config.is_concave
    with backend.precision("float64"):
        backend.package.save(model, tmp_path / "hull.safetensors")
    x = cp.Variable(rows.shape, value=rows)
    for given in (model, tmp_path / "hull.safetensors"):
        expression = to_cvxpy(given, x, output=OUTPUT, context=context)
        assert expression.is_dcp() and expression.is_concave() == concave and expression.is_convex() != concave
        wanted = values(backend, model, rows, context)
        np.testing.assert_allclose(expression.value, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["context", "monotone", "concave", "nonnegative", "everything"])
def test_a_new_context_needs_no_compilation(name):
    model, x = shaped(TORCH, name, hidden_dim=5), cp.Variable(2)
    C = contexts(model, 3)
    expression, problem = bound(model, x, C[0], parameters=True)
    assert problem.is_dpp()
    found = best(TORCH, model, TORCH.package.Box(*(np.array(b) for b in ([-3.0, -4.0], [4.0, 1.0]))), C)
    compiled = []
    for k, c in enumerate(C):
        set_context(expression, model, c)
        problem.solve(solver=cp.CLARABEL)
        compiled.append(problem._cache.param_prog)
        assert problem.value == pytest.approx(found["value"][k], rel=2e-6, abs=2e-6)
    assert np.ptp(found["value"]) > 0.1 and all(program is compiled[0] for program in compiled)
    set_weights(expression, model, context=C[0])
    problem.solve(solver=cp.CLARABEL)
    assert problem.value == pytest.approx(found["value"][0], rel=2e-6, abs=2e-6)


def test_control_another_context_and_a_forgotten_softplus_are_caught(monkeypatch):
    model, rows = shaped(TORCH, "nonnegative"), grid(3)
    C, x = contexts(model, 2), cp.Variable(rows.shape, value=rows)
    wanted = values(TORCH, model, rows, C[0])
    assert np.abs(to_cvxpy(model, x, output=OUTPUT, context=C[1]).value - wanted).max() > 1e-3
    monkeypatch.setattr(cp, "logistic", lambda expression: expression)
    assert np.abs(to_cvxpy(model, x, output=OUTPUT, context=C[0]).value - wanted).max() > 1e-3


def test_control_a_negative_scale_is_no_convex_program():
    model = shaped(TORCH, "context")
    program = ConstantProgram(_plain(model))
    program.matrices["readout.positive_weight"][0] *= -1
    assert not program.hull(cp.Variable((1, 2)), range(1)).is_dcp()


def _plain(model):
    from interop.cvxpy.programs import program_weights

    return program_weights(model, contexts(model, 1)[0], "test")


def test_faults_are_told():
    model, plain, x = shaped(TORCH, "context"), shaped(TORCH, "nonpositive"), cp.Variable(2)
    expression = to_cvxpy(model, x, parameters=True, context=[0.0, 1.0])
    cases = [
        (lambda: to_cvxpy(model, x), "to_cvxpy.context: expected one context, [context_dim=2]; got None. Pass "),
        (lambda: to_cvxpy(model, x, context=[0.0]), "to_cvxpy.context: expected last axis context_dim=2; got float64["),
        (lambda: to_cvxpy(model, x, context=np.ones((3, 2))), "to_cvxpy.context: expected one context, [context_dim="),
        (lambda: to_cvxpy(model, x, context=[0.0, np.inf]), "to_cvxpy.context: expected finite numbers; got inf "),
        (lambda: to_cvxpy(plain, x, context=[0.0]), "to_cvxpy.at: expected a hull with a context; got context_dim=0. "),
        (lambda: set_weights(expression, model), "set_weights.context: expected one context, [context_dim=2]; got "),
        (lambda: set_context(expression, plain, None), "set_context.expression: expected the "),
    ]
    for call, text in cases:
        with pytest.raises((TypeError, ValueError)) as caught:
            call()
        assert str(caught.value).startswith(text)
