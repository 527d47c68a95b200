"""A function that is not what is traced of it is not proved; honest functions of the same form are."""

import jax.numpy as jnp
import jax_tricks
import pytest
import torch
import torch_tricks

import convexmoe_jax
import convexmoe_torch

PACKAGES = {
    "jax": (convexmoe_jax, jax_tricks, jnp.asarray([0.5, -1.0, 2.0])),
    "torch": (convexmoe_torch, torch_tricks, torch.tensor([0.5, -1.0, 2.0])),
}
COMPARISON = "convexmoe.convexity.certify.find_difference"


def functions(table):
    return [
        pytest.param(package, make, id=f"{name}-{function}")
        for name, (package, tricks, _) in PACKAGES.items()
        for function, make in getattr(tricks, table).items()
    ]


def find(package, function, **options):
    x = PACKAGES[package.__name__.removeprefix("convexmoe_")][2]
    return package.certify(function, x, segments=0, **options)


@pytest.mark.parametrize(("package", "make"), functions("TRICKS"))
def test_a_function_that_is_not_its_trace_is_not_proved(package, make, monkeypatch):
    found = find(package, make())
    assert found.verdict == "unknown" and found.failed is None
    assert "the function" in found.reason and "its traced program" in found.reason
    # Control: what is not compared is proved.
    monkeypatch.setattr(COMPARISON, lambda *given: "")
    assert find(package, make()).verdict == "proved"


@pytest.mark.parametrize(("package", "make"), functions("SLOPES"))
def test_a_function_whose_gradient_is_not_that_of_its_trace_is_not_proved(package, make, monkeypatch):
    found = find(package, make())
    assert found.verdict == "unknown" and "the function's gradient has" in found.reason, str(found)
    # Control: by its values alone it is proved.
    monkeypatch.setattr("convexmoe.convexity.agreement._find_other_slope", lambda *given: None)
    assert find(package, make()).verdict == "proved"


@pytest.mark.parametrize(("package", "make"), functions("SEEN"))
def test_what_the_trace_shows_is_not_proved(package, make):
    assert find(package, make()).verdict == "unknown"


@pytest.mark.parametrize(("package", "make"), functions("HONEST"))
def test_an_honest_function_of_the_same_form_is_proved(package, make):
    found = find(package, make())
    assert found.verdict == "proved", str(found)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_function_that_looks_at_its_parameters_is_proved_for_those_it_has(name, monkeypatch):
    package, tricks, _ = PACKAGES[name]

    def find_with_fixed_buffers(layer, **options):
        return find(package, layer, fixed=getattr(layer, "scale", None), **options)

    found = find_with_fixed_buffers(tricks.AsksForSign())
    assert (found.verdict, found.strength) == ("proved", "numeric")
    assert find_with_fixed_buffers(tricks.AsksForSign(), strength="structural").verdict == "unknown"
    found = find_with_fixed_buffers(tricks.Layer())
    assert (found.verdict, found.strength) == ("proved", "structural")
    # Control: compared at its own parameters alone, it would be proved for all.
    monkeypatch.setattr("convexmoe.convexity.agreement.FACTORS", ())
    assert find_with_fixed_buffers(tricks.AsksForSign()).strength == "structural"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", PACKAGES)
def test_functions_are_compared_in_the_dtype_of_the_caller(name, dtype):
    package, tricks, x = PACKAGES[name]
    x = x.to(getattr(torch, dtype)) if name == "torch" else x.astype(dtype)
    trick = tricks.TRICKS["type" if name == "torch" else "is a tracer"]()
    assert package.certify(trick, x, segments=0).verdict == "unknown"
    assert package.certify(lambda x: (x + 1.0) ** 2 - x + tricks.convex(x), x, segments=0).verdict == "proved"
