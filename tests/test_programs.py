"""A hull as an expression of CVXPY: its rules prove it convex, its value is the model's, and solvers take it."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from backends import BACKENDS
from cases import HULLS, fields, random_inputs, random_weights
from small_hulls import hull, value

import convexmoe_torch
from interop import set_weights, to_cvxpy
from interop.cvxpy.expressions import ConstantProgram
from interop.cvxpy.matrices import hull_matrices
from interop.cvxpy.programs import hull_weights

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROWS = 3
PARAMETRIC = {
    case: HULLS[case]
    for case in ("default", "relu", "huber_relu", "gate_private", "learned", "one_petal", "strong", "units_smooth")
} | {"everything": HULLS["everything"] | {"petals": 3}}  # with 13 private petals CVXPY takes a minute to compile
NEGATIVE = [  # a case, and where a weight is made negative
    *((case, "readout") for case in ("default", "relu", "huber_relu", "smooth", "deep_private", "gate")),
    *((case, "trunk.1") for case in ("relu", "huber_relu", "deep_private")),
]


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def backend(request):
    return request.param


def made(backend, case, seed=0):
    """A model of a case, some rows, and its values there."""
    config = HULLS[case]
    model = backend.model(config, random_weights(config, seed))
    x = random_inputs(config, (ROWS,), seed)
    return model, x, backend.apply(model, x)


def solved(problem):
    problem.solve(solver=cp.CLARABEL)
    assert problem.status == "optimal"
    return problem.value


@pytest.mark.parametrize("case", HULLS)
def test_it_is_dcp_and_has_the_value_of_the_model(backend, case):
    model, x, y = made(backend, case)
    variable = cp.Variable(x.shape)
    expression = to_cvxpy(model, variable)
    assert expression.shape == y.shape
    assert expression.is_dcp() and expression.is_convex() and not expression.is_concave()
    variable.value = x
    np.testing.assert_allclose(expression.value, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", ["default", "learned", "everything", "one_petal"])
def test_one_row_and_one_output(backend, case):
    model, x, y = made(backend, case)
    row, rows = cp.Variable(x.shape[1]), cp.Variable(x.shape)
    row.value, rows.value = x[1], x
    assert to_cvxpy(model, row).shape == y.shape[1:]
    np.testing.assert_allclose(to_cvxpy(model, row).value, y[1], rtol=1e-9, atol=1e-9)
    for o in np.arange(y.shape[1]):
        one = to_cvxpy(model, row, output=o)
        assert one.shape == () and one.is_dcp() and one.is_convex()
        assert float(one.value) == pytest.approx(y[1, o], rel=1e-9, abs=1e-9)
        np.testing.assert_allclose(to_cvxpy(model, rows, output=o).value, y[:, o], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", ["private", "units", "everything"])
def test_a_folded_hull_gives_the_same(backend, case):
    model, x, y = made(backend, case)
    with backend.precision("float64"):
        folded = backend.fold(model)
    variable = cp.Variable(x.shape, value=x)
    np.testing.assert_allclose(to_cvxpy(folded, variable).value, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_file_gives_what_its_model_gives(backend, dtype, tmp_path):
    config, path = HULLS["units_smooth"], tmp_path / "hull.safetensors"
    with backend.precision(dtype):
        model = backend.model(config, random_weights(config), dtype)
        backend.package.save(model, path, notes={"columns": ["a"]})
    variable = cp.Variable(5, value=random_inputs(config)[0])
    for given in (path, str(path)):
        np.testing.assert_array_equal(to_cvxpy(given, variable).value, to_cvxpy(model, variable).value)


def test_a_file_with_an_optimizer_is_read(tmp_path):
    model = hull()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 5, dtype=torch.float64)).sum().backward()
    optimizer.step()
    convexmoe_torch.save(model, tmp_path / "hull.safetensors", optimizer=optimizer)
    variable = cp.Variable(5, value=np.ones(5))
    np.testing.assert_allclose(
        to_cvxpy(tmp_path / "hull.safetensors", variable).value, value(model, np.ones(5)), rtol=1e-9
    )


# a judge that can say no


@pytest.mark.parametrize(("case", "part"), NEGATIVE)
def test_control_one_negative_weight_is_not_dcp(case, part):
    weights = hull_weights(BACKENDS[1].model(HULLS[case], random_weights(HULLS[case])), "test")
    name = f"{part}.positive_weight"
    weights.arrays[name].flat[0] = -10.0  # its neighbor's mean with it is negative as well
    expression = ConstantProgram(weights).hull(cp.Variable((1, 5)), range(weights.config.out_dim))
    assert not expression.is_dcp()


def test_a_negative_weight_of_a_folded_hull_is_refused():
    folded = hull().fold()
    with torch.no_grad():
        folded.readout["positive_weight"][0, 0, 0] = -0.5
    with pytest.raises(ValueError, match=r"readout.positive_weight holds -0.5, which is negative"):
        to_cvxpy(folded, cp.Variable(5))


# in problems


@pytest.mark.parametrize("case", ["default", "deep_private", "smooth", "relu", "huber_relu", "gate", "everything"])
def test_a_solver_finds_a_minimum_that_no_point_is_below(case):
    model = hull(3, **{**HULLS[case], "out_dim": 1, "normalization": None})
    x = cp.Variable(5)
    problem = cp.Problem(cp.Minimize(to_cvxpy(model, x)), [cp.abs(x - 0.3) <= 1])
    assert problem.is_dcp()
    least = solved(problem)
    assert value(model, x.value)[0] == pytest.approx(least, abs=1e-6)
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.uniform(-0.7, 1.3, (2000, 5)), x.value + 1e-2 * rng.normal(size=(2000, 5))])
    assert value(model, np.clip(points, -0.7, 1.3)).min() >= least - 1e-7


def test_it_may_be_maximised_with_a_minus():
    model, x = hull(), cp.Variable(5)
    up = cp.Problem(cp.Maximize(-to_cvxpy(model, x, output=0)), [cp.norm(x) <= 1])
    down = cp.Problem(cp.Minimize(to_cvxpy(model, x)), [cp.norm(x) <= 1])
    assert up.is_dcp() and solved(up) == pytest.approx(-solved(down), abs=1e-6)
    assert not cp.Problem(cp.Maximize(to_cvxpy(model, x))).is_dcp()


def test_several_hulls_share_a_problem_and_one_is_a_constraint(backend):
    with backend.precision("float64"):
        cost = backend.fresh(fields(out_dim=1), 0, "float64")
        limit = backend.fresh(fields(out_dim=1, in_dim=2), 1, "float64")
    at_zero = backend.apply(limit, np.zeros((1, 2)))[0, 0]
    x, seen = cp.Variable(5), []
    for pull in (-3.0, 3.0):  # a convex function that is not constant rises along one of the two
        value = to_cvxpy(cost, x, output=0) + 10 * cp.sum_squares(x[:2] - pull) + cp.sum_squares(x)
        bounded = cp.Problem(cp.Minimize(value), [to_cvxpy(limit, x[:2]) - at_zero <= 0])
        assert bounded.is_dcp()
        free, least = solved(cp.Problem(cp.Minimize(value))), solved(bounded)
        assert backend.apply(limit, x.value[None, :2])[0, 0] <= at_zero + 1e-6
        seen.append(least - free)
    assert max(seen) > 0.1  # there the constraint binds


def test_an_affine_expression_is_an_input():
    model, x = hull(), cp.Variable(2)
    A = np.arange(10.0).reshape(5, 2) / 10
    expression = to_cvxpy(model, A @ x + 1)
    x.value = np.array([0.3, -0.4])
    np.testing.assert_allclose(expression.value, value(model, A @ x.value + 1), rtol=1e-9)


# parameters


@pytest.mark.parametrize("case", PARAMETRIC)
def test_parameters_are_dpp_and_new_values_are_solved_again(case):
    config = PARAMETRIC[case]
    models = [BACKENDS[1].model(config, random_weights(config, seed)) for seed in (0, 1)]
    x = cp.Variable(config["in_dim"])
    expression = to_cvxpy(models[0], x, parameters=True, output=config["out_dim"] - 1)
    assert expression.is_dcp() and expression.is_convex()
    at = random_inputs(config)[0]
    problem = cp.Problem(cp.Minimize(expression), [cp.abs(x - at) <= 0.1])
    assert problem.is_dcp() and problem.is_dpp() and problem.parameters()
    for model in (*models, models[0]):
        set_weights(expression, model)
        fixed = cp.Problem(cp.Minimize(to_cvxpy(model, x, output=config["out_dim"] - 1)), problem.constraints)
        wanted = solved(fixed)
        assert solved(problem) == pytest.approx(wanted, rel=1e-6, abs=1e-6)


def test_parameters_give_all_rows_and_outputs():
    model, x, y = made(BACKENDS[1], "default")
    variable = cp.Variable(x.shape)
    expression = to_cvxpy(model, variable, parameters=True)
    assert expression.shape == y.shape and expression.is_dpp()
    problem = cp.Problem(cp.Minimize(cp.sum(expression)), [variable == x])
    assert solved(problem) == pytest.approx(y.sum(), abs=1e-6)
    np.testing.assert_allclose(expression.value, y, atol=1e-6)


@pytest.mark.parametrize("case", ["default", "deep_private", "units_smooth"])
def test_a_parameter_on_hidden_units_cannot_be_negative(case):
    """The small problem is convex whatever the weights; that it is the hull needs weights >= 0."""
    expression = to_cvxpy(BACKENDS[1].model(HULLS[case], random_weights(HULLS[case])), cp.Variable(5), parameters=True)
    found = [parameter for parameter in expression.parameters() if "positive_weight" in parameter.name()]
    assert found
    for parameter in found:
        with pytest.raises(ValueError, match="nonneg"):
            parameter.value = -parameter.value


def test_control_the_plain_product_of_parameters_is_not_dpp():
    x, A, V = cp.Variable(5), cp.Parameter((7, 5)), cp.Parameter((1, 7), nonneg=True)
    assert not cp.Problem(cp.Minimize(cp.sum(V @ cp.logistic(A @ x)))).is_dpp()


@pytest.mark.parametrize(
    "other", [{"hidden_dim": 11}, {"activation": "relu"}, {"trunk": "private"}, {"temperature": 1.0}, {"group_size": 1}]
)
def test_weights_of_another_structure_are_refused(other):
    expression = to_cvxpy(hull(), cp.Variable(5), parameters=True)
    with pytest.raises(ValueError, match=r"set_weights.expression: expected the .* parameters of one hull"):
        set_weights(expression, hull(**other))


def test_constants_and_sums_of_hulls_take_no_weights():
    x = cp.Variable(5)
    both = to_cvxpy(hull(), x, parameters=True) + to_cvxpy(hull(), x, parameters=True)
    for expression in (to_cvxpy(hull(), x), both):
        with pytest.raises(ValueError, match=r"set_weights.expression: .* Build it by to_cvxpy"):
            set_weights(expression, hull())


def test_matrices_hold_the_units():
    matrices = hull_matrices(hull_weights(BACKENDS[1].model(HULLS["units"], random_weights(HULLS["units"])), "test"))
    np.testing.assert_allclose(matrices["output.scale"], [HULLS["units"]["normalization"]["output_scale"]])
