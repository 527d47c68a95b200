"""`conjugate` and `inverse_gradient`: the closed form, certified errors, Danskin's theorem; a control."""

import backends
import cases
import jax
import numpy as np
import pytest
import torch

from convexmoe.minimization import central_path

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPES = ("default", "relu", "learned", "gate_private")


def made(backend, name="learned", mu=0.4, dtype="float64", **changes):
    units = {k: v[:1] if k.startswith("output") else v for k, v in cases.UNITS.items()}
    fields = cases.HULLS[name] | {"out_dim": 1, "strong_convexity": mu, "normalization": units} | changes
    return backend.model(fields, cases.random_weights(fields), dtype)


def flawed(backend):
    """A hull with a weight that is no number."""
    fields = cases.HULLS["learned"] | {"out_dim": 1, "strong_convexity": 0.4}
    weights = cases.random_weights(fields)
    weights["shifts"] = weights["shifts"] * np.nan
    return backend.model(fields, weights)


def slopes(count, seed=0):
    """Random y, of the size of slopes in original units."""
    return np.random.default_rng(seed).normal(size=(count, 5)) * 0.25 / np.array(cases.UNITS["input_scale"])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SHAPES)
def test_fenchel_young_holds_within_the_gap(backend, name):
    """No point gives more than value + gap, and x gives value: both sides of the certificate."""
    model, y = made(backend, name), slopes(6)
    found = backend.package.conjugate(model, backend.array(y))
    x, value, gap, error = (backend.numpy(part) for part in found[:4])
    np.testing.assert_allclose((x * y).sum(1) - backend.apply(model, x)[:, 0], value, rtol=1e-9, atol=1e-9)
    kinked = name in ("default", "relu", "gate_private")  # rounding keeps their gap open a little
    assert (gap <= (1e-6 if kinked else 1e-8) * (1 + np.abs(value))).all() and (error <= 5e-3).all()
    rng = np.random.default_rng(1)
    scale = np.array(cases.UNITS["input_scale"])
    for size in (1e-3, 0.1, 3.0):
        near = x[None] + size * scale * rng.normal(size=(40, *x.shape))
        reached = (near * y).sum(-1) - backend.apply(model, near)[..., 0]
        assert (reached <= value + gap).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["learned", "smooth"])
def test_it_inverts_the_gradient(backend, name):
    model, y = made(backend, name), slopes(6)
    x = backend.numpy(backend.package.inverse_gradient(model, backend.array(y), tol=1e-12))
    gradient = backend.gradients(model, x, np.ones((6, 1)))["x"]
    np.testing.assert_allclose(gradient * cases.UNITS["input_scale"], y * cases.UNITS["input_scale"], atol=1e-5)


@pytest.mark.usefixtures("x64")
def test_control_a_step_too_few_is_caught(backend, replace):
    """With the path cut short the gap stays open: it is not merely said to be closed."""
    replace(central_path, "LIMIT", 1)
    found = backend.package.conjugate(made(backend, "relu"), backend.array(slopes(6)))
    assert (backend.numpy(found.gap) > 1e-6).any()


@pytest.mark.usefixtures("x64")
def test_a_warm_start_takes_fewer_steps(backend):
    model, y = made(backend), backend.array(slopes(6))
    cold = backend.package.conjugate(model, y)
    warm = backend.package.conjugate(model, y, x0=cold.x)
    assert backend.numpy(warm.iterations).max() < backend.numpy(cold.iterations).max()


def derivatives(backend, model, y):
    """The gradient of the sum of values by y, and that of the sum of x."""
    package = backend.package
    with backend.precision(str(y.dtype)):
        if backend.name == "jax":
            at = backend.array(y)
            one = jax.grad(lambda v: package.conjugate(model, v, tol=1e-12).value.sum())(at)
            two = jax.grad(lambda v: package.inverse_gradient(model, v, tol=1e-12).sum())(at)
            return backend.numpy(one), backend.numpy(two)
        at = backend.array(y).requires_grad_()
        found = package.conjugate(model, at, tol=1e-12)
        [one] = torch.autograd.grad(found.value.sum(), at, retain_graph=True)
        [two] = torch.autograd.grad(found.x.sum(), at)
        return backend.numpy(one), backend.numpy(two)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_danskin_and_the_implicit_derivative(backend, dtype):
    model, y = made(backend, "learned", dtype=dtype, normalization=None), slopes(2).astype(dtype)
    with backend.precision(dtype):
        x = backend.numpy(backend.package.inverse_gradient(model, backend.array(y), tol=1e-12))
    one, two = derivatives(backend, model, y)
    np.testing.assert_allclose(one, x, rtol=1e-5, atol=1e-5)
    step, k = (1e-4, 1e-4) if dtype == "float64" else (3e-2, 3e-2), 2
    moved = [np.array(y), np.array(y)]
    moved[0][:, k] += step[0]
    moved[1][:, k] -= step[0]
    ends = [backend.numpy(backend.package.inverse_gradient(model, backend.array(v), tol=1e-12)) for v in moved]
    slope = (ends[0] - ends[1]).sum(1) / (2 * step[0])
    np.testing.assert_allclose(two[:, k], slope, rtol=2e-2, atol=2e-3)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["learned", "relu"])
def test_the_second_derivative_of_the_value_is_the_derivative_of_x(backend, name):
    """The Hessian of the conjugate by y, against differences of its gradient x, at kinks too."""
    model, y = made(backend, name, normalization=None), slopes(1)[0]

    def value(v):
        return backend.package.conjugate(model, v, tol=1e-12).value

    hessian = jax.hessian(value) if backend.name == "jax" else torch.func.jacrev(torch.func.grad(value))
    found = backend.numpy(hessian(backend.array(y)))
    step, expected = 1e-3, []
    ends = [backend.array(y + sign * step * row) for row in np.eye(5) for sign in (1, -1)]
    x = [backend.numpy(backend.package.inverse_gradient(model, end, tol=1e-12)) for end in ends]
    expected = [(a - b) / (2 * step) for a, b in zip(x[::2], x[1::2], strict=True)]
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(found).max())
    assert np.abs(found).max() > 0.1


def test_nan_stays_nan_under_jit_and_vmap_is_refused_in_words():
    """What cannot be raised comes out as NaN; what a framework cannot do is said."""
    one, other = (made(backend, normalization=None) for backend in backends.BACKENDS)
    package = backends.BACKENDS[0].package
    y = np.array([[0.0] * 5, [np.nan] * 5], np.float32)
    found = jax.jit(lambda v: package.conjugate(one, v))(y)
    for part in found[:4]:
        assert np.isfinite(part[0]).all() and np.isnan(part[1]).all()
    with pytest.raises(ValueError, match=r"expected a tensor outside of torch.func.vmap; got float32\[5\]"):
        torch.func.vmap(lambda v: backends.BACKENDS[1].package.conjugate(other, v).value)(torch.zeros(2, 5))


def test_no_rows_and_numpy_rows(backend):
    model = made(backend)
    none = backend.package.conjugate(model, backend.array(np.zeros((0, 5), np.float32)))
    assert none.x.shape == (0, 5) and none.value.shape == (0,)
    y = slopes(2).astype(np.float32)
    one, two = (backend.package.conjugate(model, v).value for v in (y, backend.array(y)))
    np.testing.assert_array_equal(backend.numpy(one), backend.numpy(two))


@pytest.mark.usefixtures("x64")
def test_the_packages_agree_and_refuse_in_the_same_words():
    texts, values = [], []
    for backend in backends.BACKENDS:
        found = backend.package.conjugate(made(backend), backend.array(slopes(6)))
        values.append([backend.numpy(part) for part in found])
        caught = []
        for arguments in (
            (made(backend, mu=0.0), backend.array(slopes(2))),
            (made(backend), backend.array(np.zeros(3))),
            (made(backend), [0.0] * 5),
            (made(backend), backend.array(slopes(2)), backend.array(np.zeros(3))),
            (made(backend), backend.array(slopes(2)), None, 2.0),
            (made(backend), backend.array(np.zeros(5, np.int64))),
            (made(backend), backend.array(np.full(5, np.nan))),
            (made(backend), backend.array(slopes(2)), backend.array(np.full(5, np.nan))),
            (flawed(backend), backend.array(slopes(2))),
        ):
            with pytest.raises((ValueError, TypeError)) as fault:
                backend.package.conjugate(*arguments)
            caught.append(str(fault.value))
        texts.append(caught)
    assert texts[0] == texts[1] and "strong_convexity > 0" in texts[0][0]
    np.testing.assert_allclose(values[0][0], values[1][0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(values[0][1], values[1][1], rtol=1e-8, atol=1e-8)


def test_a_start_is_no_part_of_the_derivatives_and_arrays_of_the_other_library_are_taken():
    model, package = made(backends.BACKENDS[1]), backends.BACKENDS[1].package
    y, start = torch.tensor(slopes(2)), torch.zeros(2, 5, dtype=torch.float64, requires_grad=True)
    assert not package.conjugate(model, y, start).gap.requires_grad
    value = package.conjugate(model, np.asarray(y), jax.numpy.zeros(5)).value
    np.testing.assert_allclose(
        value.detach().numpy(), package.conjugate(model, y, start).value.detach().numpy(), rtol=1e-8
    )


def test_weights_that_overflow_give_no_error_of_linear_algebra():
    fields = cases.HULLS["learned"] | {"out_dim": 1, "strong_convexity": 0.4}
    weights = cases.random_weights(fields)
    weights["trunk.0.weight"] = np.full_like(weights["trunk.0.weight"], 1e30)
    for backend in backends.BACKENDS:
        found = backend.package.conjugate(backend.model(fields, weights), backend.array(slopes(2)))
        assert backend.numpy(found.value).shape == (2,)
