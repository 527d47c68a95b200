"""What a certificate of PyTorch says beside its verdict, and of functions that are not as it likes them."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

from convexmoe.convexity.certificate import EXACT
from convexmoe.convexity.walk import Rule
from convexmoe_torch import certify
from convexmoe_torch.convexity.rules import RULES

X = torch.tensor([0.5, -1.0, 2.0])


def verdict(function, x=X, **options):
    return certify(function, x, segments=0, **options).verdict


def relu_layer(params, x):
    return torch.exp(params["w"]) @ torch.relu(params["a"] @ x + params["b"])


PARAMS = {"w": torch.ones(2, 4), "a": torch.ones(4, 3), "b": torch.ones(4)}


def test_a_positivity_map_is_structure_and_positive_numbers_are_not():
    found = certify(relu_layer, X, params=PARAMS)
    assert (found.verdict, found.strength) == ("proved", "structural")

    def bare(params, x):
        return params["w"] @ torch.relu(params["a"] @ x)

    found = certify(bare, X, params=PARAMS)
    assert (found.verdict, found.strength) == ("proved", "numeric") and "given parameters" in found.reason
    assert verdict(bare, params=PARAMS, strength="structural") == "unknown"
    found = certify(bare, X, params=PARAMS | {"w": -PARAMS["w"]})
    assert (found.verdict, found.strength) == ("refuted", "numeric")


def test_partial_and_joint_convexity():
    def bilinear(x, y):
        return torch.dot(x, y) + torch.sum(y**2)

    pair = (X, X)
    assert [verdict(bilinear, pair, argnum=k) for k in (0, 1)] == ["proved", "proved"]
    assert certify(bilinear, pair, argnum=(0, 1)).verdict == "refuted"
    assert verdict(lambda x, y: torch.sum((x - y) ** 2), pair, argnum=(0, 1)) == "proved"


def test_monotonicity_in_each_input():
    found = certify(lambda x: torch.stack([torch.exp(x[0]) - x[1], x[1] * x[1] + 0.0 * x[2]]), X, per_input=True)
    [output] = found.outputs
    assert output.per_input.tolist() == [
        ["nondecreasing", "nonincreasing", "constant"],
        ["constant", "unknown", "constant"],
    ]


def test_outputs_have_their_names():
    found = certify(lambda x: {"one": torch.exp(x), "two": (None, -torch.abs(x), 3.0)}, X, segments=0)
    assert [output.name for output in found.outputs] == ["one", "two.1", "two.2"]
    assert [output.weakest for output in found.outputs] == ["convex", "concave", "constant"]


def test_text_and_json():
    found = certify(relu_layer, X, params=PARAMS)
    assert str(found).startswith("proved: ") and EXACT in str(found)
    for part in ("dot [2]", "maximum [4]", "parameter [4]  [b]", "test_torch_claims.py:", "> 0"):
        assert part in str(found)
    assert json.loads(found.to_json())["outputs"][0]["lower"] == [0.0, 0.0]
    found = certify(lambda x: torch.sum(torch.sin(x)), X)
    assert found.failed.operation == "sin" and "test_torch_claims.py" in found.failed.source
    record = json.loads(found.to_json())
    assert record["violation"]["gap"] == pytest.approx(found.violation.gap)


@pytest.mark.parametrize(
    ("dtype", "threshold", "expected"),
    [
        ("float32", 20.0, "proved"),
        ("float32", 15.0, "proved"),
        ("float32", 14.0, "unknown"),
        ("float32", 10.0, "unknown"),
        ("float64", 34.0, "proved"),
        ("float64", 33.0, "unknown"),
        ("float64", 20.0, "unknown"),
        ("bfloat16", 20.0, "proved"),
    ],
)
def test_softplus_is_taken_for_itself_where_its_step_cannot_be_seen(dtype, threshold, expected):
    x = torch.ones(2, dtype=getattr(torch, dtype))
    found = certify(lambda x: F.softplus(x, threshold=threshold), x)
    assert found.verdict == expected
    assert ("jumps down" in found.reason) == (expected == "unknown")
    here = torch.tensor(threshold, dtype=x.dtype)
    above = torch.nextafter(here, torch.full_like(here, math.inf))
    step = bool(F.softplus(above, threshold=threshold) < F.softplus(here, threshold=threshold))
    if expected == "proved" or threshold <= 20.0 - 10.0 * (dtype == "float32"):  # between the two it is one ulp
        assert step == (expected == "unknown")


def test_branches():
    flag = torch.tensor(True)
    assert verdict(lambda x: torch.cond(flag, torch.abs, torch.sin, [x])) == "proved"
    options = {"params": flag, "strength": "structural"}
    assert verdict(lambda p, x: torch.cond(p, torch.abs, torch.exp, [x]), **options) == "proved"
    assert verdict(lambda p, x: torch.cond(p, torch.abs, torch.sin, [x]), **options) == "unknown"
    assert verdict(lambda x: torch.cond(x.sum() > 0, torch.abs, torch.exp, [x])) == "unknown"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_constants_that_are_not_numbers(bad):
    found = certify(lambda x: x + torch.tensor([0.0, bad, 0.0]), X, segments=0)
    assert found.verdict == "unknown" and "finite" in str(found)
    assert verdict(lambda p, x: x * p, params=torch.full((3,), bad), strength="numeric") == "unknown"


def test_minus_infinity_is_a_mask_for_a_maximum():
    mask = torch.tensor([True, False, True])
    assert verdict(lambda x: torch.max(torch.where(mask, x, -math.inf))) == "proved"
    assert verdict(lambda x: torch.max(x.masked_fill(~mask, -math.inf))) == "proved"
    assert verdict(lambda x: torch.min(torch.where(mask, x, -math.inf))) == "unknown"
    assert verdict(lambda x: torch.sum(torch.where(mask, x, -math.inf))) == "unknown"


def test_programs_that_cannot_be_followed():
    found = certify(lambda x: x if x[0] > 0 else -x, X)
    assert found.verdict == "unknown" and "in Python" in found.reason and found.steps == ()
    for function in (
        lambda x: torch.abs(x) * x.sum().item(),
        lambda x: torch.as_tensor(x.numpy()),
        lambda x: torch.abs(x)[x > 0],
        torch.erfinv,
        lambda x: torch.linalg.inv(torch.eye(3) + torch.outer(x, x)),
    ):
        assert verdict(function) == "unknown"


@torch.library.custom_op("convexmoe_tests::exp", mutates_args=())
def foreign(x: torch.Tensor) -> torch.Tensor:
    """An operator of another library, - x^2, that has the name of another one."""
    return -(x**2)


@foreign.register_fake
def _(x):
    return torch.empty_like(x)


def cut_quotient(x):
    """An operator with a rule, in a form that is not written in operations with rules."""
    return torch.div(x, torch.tensor(2.0), rounding_mode="trunc")


@pytest.mark.parametrize("function", [foreign, cut_quotient], ids=["another library", "another form"])
def test_an_operator_is_not_known_by_its_name(function, monkeypatch):
    found = certify(function, X, segments=0)
    name = found.failed.operation
    assert found.verdict == "unknown" and "." in name and f"no rule for the primitive '{name}'" in found.reason
    # Control: by its name it would be another function.
    monkeypatch.setitem(RULES, name, RULES[name.rpartition(".")[2]])
    monkeypatch.setattr("convexmoe.convexity.certify.find_difference", lambda *given: "")  # which sees it, too
    assert verdict(function) == "proved"


def test_a_sum_of_truth_values_is_a_truth_value(monkeypatch):
    def counted(x):
        return torch.abs(x) * (torch.ones(3).sum(dtype=torch.bool).float() - 1.5)

    assert certify(counted, X).verdict == "refuted"
    # Control: bounds that are left as they are prove what is false.
    monkeypatch.setattr("convexmoe.convexity.walk.in_range", lambda value, dtype: value)
    monkeypatch.setattr("convexmoe.convexity.certify.find_difference", lambda *given: "")  # which sees it, too
    assert verdict(counted) == "proved"


@pytest.mark.parametrize("nothing", [None, (), {}])
def test_a_function_without_outputs(nothing):
    found = certify(lambda x: nothing, X)
    assert (found.verdict, found.reason) == ("unknown", "the function returns no array")


def test_outputs_that_are_not_real():
    found = certify(lambda x: x.to(torch.complex64), X)
    reason = "the function returns complex64[3]: convexity is of real outputs"
    assert (found.verdict, found.reason) == ("unknown", reason)
    found = certify(lambda x: {"x": x, "name": "a"}, X)
    assert (found.verdict, found.reason) == ("unknown", "the function returns 'a', which is no number")


def test_rounding_inside_refutes_nothing(monkeypatch):
    """A search in float64 sees the rounding of a cast that the function makes itself."""
    half = lambda function: lambda x: function(x.bfloat16()).float()  # noqa: E731
    product = half(lambda u: torch.relu(u) * (torch.exp(u) + torch.relu(u)))  # convex, by no rule
    assert certify(product, X).verdict == "unknown"
    found = certify(half(lambda u: -u * u), X)
    assert found.verdict == "refuted" and found.violation.dtype == "bfloat16"
    # Control: held to float64, the convex function is refuted.
    monkeypatch.setattr("convexmoe.convexity.certify.coarsest_dtype", lambda walk, dtype: "")
    assert certify(product, X).verdict == "refuted"


def test_an_example_around_which_nothing_can_be_looked_for():
    found = certify(lambda x: -(x**2), torch.tensor([math.nan, 1.0]))
    assert found.verdict == "unknown"
    assert found.reason.endswith("around an example that is empty or not finite")


class Counting(torch.nn.Module):
    """Changes its parameter, its buffers and its input."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([-1.0, 2.0, 3.0]))
        self.norm = torch.nn.BatchNorm1d(3)

    def forward(self, x):
        with torch.no_grad():
            self.weight.clamp_(min=0)
        return self.weight * torch.abs(x.mul_(2.0)) + 0.0 * self.norm(x[None].expand(2, 3))[0]


def test_what_the_function_changes_is_left_as_it_is():
    model, x = Counting(), X.clone()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    certify(model, x)
    assert torch.equal(x, X)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model(x)  # control: it does change them
    assert not torch.equal(x, X) and all(
        not torch.equal(tensor, before[name])
        for name, tensor in model.state_dict().items()
        if name in ("weight", "norm.running_mean", "norm.num_batches_tracked")
    )


def test_places_that_are_fixed_but_unknown():
    places = torch.tensor([0, 1])
    signs = torch.tensor([1.0, -1.0, 1.0])
    assert verdict(lambda k, x: torch.abs(x)[k], (places, X), argnum=1) == "proved"
    assert verdict(lambda k, x: (torch.abs(x) * signs)[k], (places, X), argnum=1) == "unknown"
    assert verdict(lambda k, x: torch.abs(x)[k], (places, X), argnum=0) == "unknown"
    found = certify(lambda k, x: torch.abs(x)[k], (places, X), argnum=0)
    assert "real inputs" in found.reason


@pytest.mark.parametrize("x", [torch.ones(()), torch.ones(0), torch.ones(2, 0, 3), torch.ones(1, 1, 1), 2.0])
def test_shapes(x):
    assert certify(lambda x: torch.abs(x) + 1.0, x).verdict == "proved"
    assert certify(lambda x: torch.sum(x**2), x).verdict == "proved"


def test_a_rule_that_fails_proves_nothing(monkeypatch):
    def failing(*given):
        raise RuntimeError("a fault")

    monkeypatch.setitem(RULES, "abs", Rule("scalar", failing))
    found = certify(torch.abs, X, segments=0)
    assert found.verdict == "unknown" and "a fault" in found.reason


def test_a_function_that_vmap_does_not_take_is_searched_row_by_row():
    def stubborn(x):
        y = torch.zeros(3)
        y[0] = -(x[0] ** 2)  # into a tensor that is not batched
        return y

    assert certify(stubborn, X).verdict == "refuted"


def test_mistakes_of_the_caller_are_errors():
    for argnum in (1, -1, True, (), (0, 0), 0.0):
        with pytest.raises(ValueError, match=r"certify\.argnum: expected indices of 1 arguments, each once"):
            certify(torch.abs, X, argnum=argnum)
    with pytest.raises(ValueError, match=r"certify\.strength: expected one of \['structural', 'numeric'\]"):
        certify(torch.abs, X, strength="strong")
    with pytest.raises(RuntimeError, match=r"size mismatch|cannot be multiplied"):
        certify(lambda x: torch.ones(2, 5) @ x, X)
    for option in ({"segments": -1}, {"segments": 1.5}, {"seed": -1}):
        with pytest.raises((TypeError, ValueError), match=r"certify\.(segments|seed): expected a whole number >= 0"):
            certify(torch.abs, X, **option)
    for example in (None, {"x": X}, [[1.0], [1.0, 2.0]]):
        with pytest.raises(TypeError, match=r"certify\.x_example: expected an array, or a tuple of arrays; got"):
            certify(torch.abs, example)
