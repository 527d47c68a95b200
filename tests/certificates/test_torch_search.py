"""The search in PyTorch: what random segments miss, what rounding pretends, what takes no float64."""

import numpy as np
import pytest
import torch

from convexmoe.convexity import search, segments
from convexmoe.convexity.segments import BATCH, between, draw_segments, search_region
from convexmoe_torch import VectorHull, certify, find_violation
from convexmoe_torch.convexity import search as violation

SIZE = 24
AXIS = np.ones(SIZE, np.float32) / np.sqrt(np.float32(SIZE))


def saddle(x):
    """Convex in all directions but those near one: a random segment in 24 dimensions is never near it."""
    return torch.sum(x**2, dim=1) - 1.6 * (x @ torch.as_tensor(AXIS, dtype=x.dtype)) ** 2


def test_the_ascent_finds_what_random_segments_miss(monkeypatch):
    points = torch.tensor([[-1.0] * SIZE, [1.0] * SIZE])
    found = find_violation(saddle, points, segments=5_000)
    assert found is not None and found.gap > 0.1 and found.dtype == "float64"
    direction = (found.right - found.left) / np.linalg.norm(found.right - found.left)
    assert abs(direction @ AXIS) > 0.75
    monkeypatch.setattr(search, "_climb", lambda function, candidates, *rest: candidates)
    assert find_violation(saddle, points, segments=5_000) is None


def test_the_ascent_stays_in_the_box_and_does_not_lower_the_gap(monkeypatch):
    points = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    found = find_violation(lambda x: -torch.sum(x**4, dim=1), points, segments=1_000)
    assert (np.abs([found.left, found.right]) <= 2.0 + 1e-6).all()
    monkeypatch.setattr(search, "_climb", lambda function, candidates, *rest: candidates)
    assert found.gap >= find_violation(lambda x: -torch.sum(x**4, dim=1), points, segments=1_000).gap


def test_rounding_in_float32_is_no_violation(monkeypatch):
    def rough(x):
        ten = torch.full((), 10.0, dtype=x.dtype)
        return torch.sum(x + torch.exp(x + ten) - torch.exp(x) * torch.exp(ten), dim=1)

    points = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    assert find_violation(rough, points, segments=2_000) is None

    def refuse(function):
        def wide(x):
            raise TypeError("float32 only")

        return wide

    monkeypatch.setattr(violation, "widen", refuse)
    assert find_violation(rough, points, segments=2_000) is None  # its gaps do not stay
    monkeypatch.setattr(segments, "_survive_perturbation", lambda candidates, *rest: np.ones(len(candidates.gap), bool))
    assert find_violation(rough, points, segments=2_000).dtype == "float32"


def test_a_function_that_takes_no_float64_says_so():
    hull = VectorHull(3, petals=2)
    points = torch.eye(3)
    found = find_violation(lambda x: -hull(x), points, segments=2_000)
    assert found.dtype == "float32" and found.gap > 0
    assert find_violation(lambda x: -torch.abs(x), points, segments=2_000).dtype == "float64"


def test_a_function_without_gradients_is_searched():
    def stubborn(x):
        return -torch.abs(x).detach()

    assert find_violation(stubborn, torch.eye(2), segments=2_000).gap > 0


def test_a_module_is_searched_and_left_as_it_was():
    """It is confirmed in float64 on a copy, and no gradient stays behind."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    found = find_violation(model, torch.eye(3), segments=2_000)
    assert found.gap > 0 and found.dtype == "float64"
    assert all(p.dtype == torch.float32 and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("segments", [1, 2, BATCH + 1])
def test_any_number_of_segments(segments):
    points = np.array([[0.0, 1.0], [2.0, 5.0]])
    assert sum(len(left) for left, _, _ in draw_segments(search_region(points, None), segments, 0)) == segments
    find_violation(lambda x: torch.sum(x, dim=1), torch.as_tensor(points).float(), segments=segments)


def test_the_values_of_a_violation_are_those_of_the_function():
    found = find_violation(lambda x: torch.sin(x) * 3.0, torch.tensor([[-1.0], [4.0]]), segments=3_000)
    at = between(np, found.left, found.right, np.float64(found.weight))
    assert found.value_left == pytest.approx(3 * np.sin(found.left[0]), rel=1e-9)
    assert found.value_right == pytest.approx(3 * np.sin(found.right[0]), rel=1e-9)
    assert found.value == pytest.approx(3 * np.sin(at[0]), rel=1e-9)
    chord = found.weight * found.value_left + (1 - found.weight) * found.value_right
    assert found.gap == pytest.approx(found.value - chord)


def variance(z):
    """Convex, and lost in rounding where the mean is large."""
    return torch.mean(z**2, dim=-1) - torch.mean(z, dim=-1) ** 2


@pytest.mark.parametrize("offset", [1e4, 1e6, 1e8])
def test_what_rounding_makes_in_float64_refutes_nothing(offset, monkeypatch):
    x = torch.linspace(-1, 1, 30, dtype=torch.float64)
    assert certify(lambda x: variance(x + offset), x).verdict != "refuted"
    points = torch.stack([x - 2, x + 2])
    assert find_violation(lambda x: variance(x + offset), points, segments=20_000) is None
    monkeypatch.setattr(segments, "_survive_perturbation", lambda candidates, *rest: np.ones(len(candidates.gap), bool))
    assert find_violation(lambda x: variance(x + offset), points, segments=20_000) is not None


@pytest.mark.parametrize("name", ["dropout", "noise", "mask"])
def test_a_function_that_draws_random_numbers_is_unknown(name):
    functions = {
        "dropout": torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Dropout(0.5)),
        "noise": lambda x: x + 0.1 * torch.randn_like(x),
        "mask": lambda x: torch.bernoulli(torch.full_like(x, 0.5)) * x,
    }
    certificate = certify(functions[name], torch.ones(1, 3))
    assert certificate.verdict == "unknown" and "call .eval()" in certificate.reason
    with pytest.raises(ValueError, match="expected the same values at the same points"):
        find_violation(functions[name], torch.eye(3), segments=1_000)
    assert certify(functions["dropout"].eval(), torch.ones(1, 3)).verdict == "proved"


@pytest.mark.parametrize("waves", [30.0, 1000.0])
def test_short_waves_are_refuted_though_the_segment_is_shaken(waves):
    assert certify(lambda x: torch.sin(waves * x), torch.ones(3)).verdict == "refuted"


def test_a_search_takes_one_thread_and_gives_the_others_back():
    before, seen = torch.get_num_threads(), []

    def counted(x):
        seen.append(torch.get_num_threads())
        return x.sum(1, keepdim=True)

    torch.set_num_threads(3)
    try:
        find_violation(counted, torch.eye(2), segments=10)
        assert torch.get_num_threads() == 3
        with pytest.raises(ValueError, match="finite"):
            find_violation(lambda x: counted(x) / 0, torch.eye(2), segments=10)
        assert torch.get_num_threads() == 3 and set(seen) == {1}
    finally:
        torch.set_num_threads(before)
