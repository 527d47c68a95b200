"""`convexmoe minimize`: the numbers it prints, and one line for each fault."""

import backends
import cases
import cvxpy as cp
import numpy as np
import programs
import pytest
import torch
from commands import FRAMEWORKS, invoke

import convexmoe_torch
from interop import frameworks
from interop.command import minimize
from interop.command.saved_model import notes_of


@pytest.fixture
def file(tmp_path):
    """A saved hull of a, b -> y with the ranges it was trained on."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, (200, 2))
    y = np.abs(x[:, 0] - 0.5) + (x[:, 1] - 3) ** 2
    hull = convexmoe_torch.VectorHull(2, petals=3, out_dim=1, temperature="learned")
    model = convexmoe_torch.fit(hull, x, y, steps=60).model
    path = tmp_path / "model.safetensors"
    convexmoe_torch.save(model, path, notes=notes_of(("a", "b"), "y", x))
    return path


def bare(tmp_path, **options):
    """A saved hull that knows no names and no ranges."""
    path = tmp_path / "bare.safetensors"
    convexmoe_torch.save(convexmoe_torch.VectorHull(2, petals=3, **options), path)
    return path


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_it_prints_point_value_gap_and_what_binds(file, framework):
    result = invoke("minimize", file, "--box", "-1<=b<=1", "--framework", framework)
    assert result.exit_code == 0, result.output
    assert "certified" in result.output and "upper" in result.output and "y = " in result.output


def test_both_frameworks_find_the_same(file):
    found = [minimize.minimize(file, frameworks.get(name), ["a=1", "b<=0"], 1e-6, None) for name in FRAMEWORKS]
    assert found[0].binding == found[1].binding == ("fixed", "upper")
    assert abs(found[0].value - found[1].value) <= 2e-6 * (1 + abs(found[0].value))
    assert found[0].lower[1] < -1.9 and found[0].upper.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("box", "lower", "upper"),
    [
        ("a==1", 1.0, 1.0),
        ("1=a", 1.0, 1.0),
        ("1>=a", None, 1.0),
        ("-1 <= a", -1.0, None),
        ("1>=a>=-1", -1.0, 1.0),
        ("a<=inf", None, np.inf),
    ],
)
def test_bounds_are_read_in_either_direction(box, lower, upper):
    assert minimize.read_box(box) == ("a", lower, upper)


@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_binds_is_said_at_any_tolerance(file, framework, tol):
    """The hull falls towards b = 3 and is least at a = 0.5: b's upper bound binds, and none of a."""
    found = minimize.minimize(file, frameworks.get(framework), ["-2<=a<=2", "-1<=b<=1"], tol, None)
    assert found.binding == ("", "upper")


def distance(tmp_path):
    """A saved hull of a, b -> `|a - 0.5| + |b - 3|`, `2 relu(u) - u` of either, in units that differ by 1e3."""
    units = {"input_mean": (0.5, 3.0), "input_scale": (1.0, 1e3), "output_mean": (0.0,), "output_scale": (1.0,)}
    options = {"petals": 1, "out_dim": 1, "hidden_dim": 2, "activation": "relu", "dtype": torch.float64}
    hull = convexmoe_torch.VectorHull(2, normalization=convexmoe_torch.Normalization(**units), **options)
    slopes, weights = torch.tensor([1.0, 1e3], dtype=torch.float64), dict(hull.named_parameters())
    with torch.no_grad():
        for value in weights.values():
            value.zero_()
        weights["trunk.0.weight"].copy_(torch.diag(slopes))
        weights["readout.raw_weight"].fill_(np.log(np.expm1(2 * programs.DEVIATIONS["relu"] / np.sqrt(0.5 / 2))))
        weights["readout.weight"].copy_(-slopes.reshape(2, 1, 1))
        ends = hull(torch.tensor([[0.5, 3.0], [3.5, 13.0]], dtype=torch.float64))[:, 0]
    assert abs(float(ends[1] - ends[0]) - 13.0) <= 1e-9
    path = tmp_path / "distance.safetensors"
    convexmoe_torch.save(hull, path, notes=notes_of(("a", "b"), "y", np.array([[-2.0, -2.0], [2.0, 2.0]])))
    return path


@pytest.mark.parametrize(
    ("boxes", "binding"),
    [
        (["a<=1e6", "-1<=b<=1"], ("", "upper")),
        (["-1e10<=a<=1e10", "b<=1"], ("", "upper")),
        (["a<=inf", "b<=1"], ("", "upper")),
        (["a>=-inf", "1<=b<=1.000001"], ("", "upper")),
        (["1<=a<=1.000001", "b<=1e4"], ("lower", "")),
        (["1<=a<=1e9", "-2<=b<=-1"], ("lower", "upper")),
    ],
)
def test_what_binds_is_said_of_wide_narrow_and_open_boxes(tmp_path, boxes, binding):
    found = minimize.minimize(distance(tmp_path), frameworks.get("torch"), boxes, 1e-6, None)
    assert found.binding == binding and found.certified


def test_control_what_is_near_in_units_of_the_width_does_not_bind(tmp_path, monkeypatch):
    def near(package, model, lower, upper, output, context):
        x = np.asarray(package.minimize(model, package.Box(lower, upper), output=output).x)
        at = [side <= 1e-6 * (upper - lower) for side in (x - lower, upper - x)]
        return tuple(np.select(at, ["lower", "upper"], "").tolist())

    monkeypatch.setattr(minimize, "binding_sides", near)
    found = minimize.minimize(distance(tmp_path), frameworks.get("torch"), ["a<=1e9", "b<=1"], 1e-6, None)
    assert found.binding == ("lower", "upper")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_binds_has_a_multiplier(framework):
    """Random hulls on boxes of all widths, against the multipliers that Clarabel finds."""
    backend, compared = {b.name: b for b in backends.BACKENDS}[framework], 0
    units = {"input_mean": [20.0, -1.0], "input_scale": [1e-2, 1e3], "output_mean": [5.0], "output_scale": [10.0]}
    fields = cases.fields(in_dim=2, out_dim=1, petals=5, temperature=0.3, normalization=units)
    mean, scale = np.array(units["input_mean"]), np.array(units["input_scale"])
    for seed in range(5):
        rng, weights = np.random.default_rng(seed), cases.random_weights(fields, seed)
        width, z = 10.0 ** rng.uniform(-6, 10, 2), cp.Variable(2)
        low = rng.normal(size=2) - width * rng.uniform(0, 1, 2)
        model, sides = backend.model(fields, weights), (mean + scale * low, mean + scale * (low + width))
        binding = minimize.binding_sides(backend.package, model, *sides, None)
        rules = [z >= low, z <= low + width]
        problem = cp.Problem(cp.Minimize(programs.hull(weights, fields, z)), rules)
        problem.solve(solver=cp.CLARABEL)
        for k, side in enumerate(binding):
            push = rules[0].dual_value[k] - rules[1].dual_value[k]
            if not 1e-6 < abs(push) < 1e-3 and problem.status == cp.OPTIMAL:
                compared += 1
                assert side == ("" if abs(push) < 1e-3 else "lower" if push > 0 else "upper")
    assert compared >= 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--box", "0<=c<=1"], "got 'c'. The closest is"),
        (["--box", "2<=a<=1"], "expected lower <= upper for 'a'; got 2 and 1"),
        (["--box", "a~1"], "Write numbers and a column."),
        (["--box", "a<=2,5"], "got 'a<=2,5'. Write a decimal point, as 2.5."),
        (["--box", "a=inf"], "expected a finite number; got 'a=inf'. Write \"a<=inf\" for no bound above."),
        (["--box", "a>=inf"], "expected a finite number"),
        (["--box", "a<=1", "--box", "a>=0"], "got two for 'a'"),
        (["--tol", "0"], "expected a number in (0, 1]"),
        (["--output", "1"], "expected a whole number from 0 to 0"),
    ],
)
def test_a_fault_is_one_line(file, options, words):
    result = invoke("minimize", file, "--framework", "torch", *options)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split()) and result.stderr.count("\n") == 1


def test_a_file_without_ranges_asks_for_boxes(tmp_path):
    result = invoke("minimize", bare(tmp_path, out_dim=1), "--framework", "torch", "--box", "x0<=1")
    assert result.exit_code == 2 and "got none for x1" in result.stderr


def test_a_hull_of_several_outputs_needs_one(tmp_path):
    path, boxes = bare(tmp_path), ["--box", "-1<=x0<=1", "--box", "0<=x1<=1", "--framework", "torch"]
    assert "--output 0" in invoke("minimize", path, *boxes).stderr
    assert invoke("minimize", path, *boxes, "--output", "1").exit_code == 0


def test_weights_that_are_not_numbers(tmp_path):
    model = convexmoe_torch.VectorHull(1, petals=3)
    with torch.no_grad():
        model.shifts.fill_(float("nan"))
    path = tmp_path / "nan.safetensors"
    convexmoe_torch.save(model, path)
    result = invoke("minimize", path, "--box", "0<=x0<=1", "--framework", "torch")
    assert result.exit_code == 2 and "finite" in result.stderr
