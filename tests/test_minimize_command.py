"""`convexmoe minimize`: the numbers it prints, and one line for each fault."""

import numpy as np
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


def test_control_a_slope_that_pushes_away_does_not_bind():
    lower, upper, x = np.zeros(3), np.ones(3), np.array([1e-4, 1e-4, 0.5])
    assert minimize.binding_sides(x, lower, upper, np.array([1.0, -1.0, 1e-9]), 1e-3) == ("lower", "", "")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--box", "0<=c<=1"], "got 'c'. The closest is"),
        (["--box", "2<=a<=1"], "expected lower <= upper for 'a'; got 2 and 1"),
        (["--box", "a~1"], "expected bounds as"),
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
