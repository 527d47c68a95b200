"""Arrays of any library: the namespace of an array, and what each library spells in its own way.

The solver of `convexmoe.minimization` is written once, over the array API standard, and runs in numpy, in JAX under
`jax.jit`, and in PyTorch. This is the only file that knows that there are several libraries: numpy is described here,
each package describes its own (`register`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj, is_jax_namespace

Array = Any


class Library(NamedTuple):
    """What a library of arrays has under names of its own, or what the standard leaves out.

    Args:
        while_loop: (goes_on, advance, state) -> state, `state` a tuple of arrays.
        repeat: (times, advance, array) -> array.
        factorize: (..., d, d), positive definite -> the function that solves systems with it for columns (..., d, k);
            NaN where a matrix is not positive definite.
        sigmoid: `1 / (1 + exp(-u))`; xlogy: (x, y) -> `x log y`, 0 at x = 0.
        logsumexp, softmax: over the last axis.
        stop_gradient: the array without its derivatives.
        gradient: (f, z) -> the gradient of `sum f(z)` by z with its derivatives, None where none are recorded.
        place: (made, beside) -> an array that was made of constants, for the devices that the other one is on.
    """

    while_loop: Callable[[Callable, Callable, Any], Any]
    repeat: Callable[[int, Callable[[Array], Array], Array], Array]
    factorize: Callable[[Array], Callable[[Array], Array]]
    sigmoid: Callable[[Array], Array]
    xlogy: Callable[[Array, Array], Array]
    logsumexp: Callable[[Array], Array]
    softmax: Callable[[Array], Array]
    stop_gradient: Callable[[Array], Array]
    gradient: Callable[[Callable[[Array], Array], Array], Array | None]
    place: Callable[[Array, Array], Array] = lambda made, beside: made


LIBRARIES: dict[str, Library] = {}
NUMPY = array_namespace(np.zeros(0))


def namespace(array: Array) -> Any:
    """Return the library of an array, as a module that follows the array API standard."""
    return NUMPY if type(array) is np.ndarray else array_namespace(array)


def register(namespace: Any, library: Library) -> None:
    """Say what the library of a namespace spells in its own way."""
    LIBRARIES[namespace.__name__] = library


def library(array: Array) -> Library:
    """Return what the library of `array` spells in its own way."""
    return LIBRARIES[namespace(array).__name__]


def like(array: Array) -> dict[str, Any]:
    """Return dtype and device of an array, for the arrays that are created beside it; JAX places them itself."""
    if is_jax_namespace(namespace(array)):
        return {"dtype": array.dtype}
    return {"dtype": array.dtype, "device": device(array)}


def eye(size: int, beside: Array) -> Array:
    """Return the identity matrix."""
    return library(beside).place(namespace(beside).eye(size, **like(beside)), beside)


def zeros(shape: int | tuple[int, ...], beside: Array) -> Array:
    """Return zeros of the dtype and on the device of another array."""
    return library(beside).place(namespace(beside).zeros(shape, **like(beside)), beside)


def as_array(value: Any, beside: Array) -> Array:
    """Return numbers as an array of the library and the dtype of another one, on its device if it has to be made."""
    xp = namespace(beside)
    if is_array_api_obj(value) and namespace(value) is xp:
        return xp.astype(value, beside.dtype, copy=False)
    return library(beside).place(xp.asarray(value, **like(beside)), beside)


def einsum(formula: str, *arrays: Array) -> Array:
    """Return a sum of products; more than two factors are multiplied in the cheapest order."""
    xp = namespace(arrays[0])
    return np.einsum(formula, *arrays, optimize=len(arrays) > 2) if xp is NUMPY else xp.einsum(formula, *arrays)


def iterate(goes_on: Callable[[Any], Any], advance: Callable[[Any], Any], state: Any) -> Any:
    """Return the state after the last step: a loop in Python, for libraries that compute at once."""
    while bool(goes_on(state)):
        state = advance(state)
    return state


def repeat(times: int, advance: Callable[[Array], Array], array: Array) -> Array:
    """Return `array` after `times` steps of a loop in Python."""
    for _ in range(times):
        array = advance(array)
    return array


def _factorize(system: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return what solves with `system`; numpy raises where one matrix of many is not positive definite."""
    identity = np.eye(system.shape[-1])
    try:
        root, valid = np.linalg.cholesky(system), None
    except np.linalg.LinAlgError:
        finite = np.isfinite(system).all((-2, -1), keepdims=True)
        least = np.linalg.eigvalsh(np.where(finite, system, identity))[..., :1, None]
        valid = finite & (least > 1e-14)
        root = np.linalg.cholesky(np.where(valid, system, identity))
    inverse = np.linalg.solve(root, identity)

    def solve(columns: np.ndarray) -> np.ndarray:
        solution = np.swapaxes(inverse, -1, -2) @ (inverse @ columns)
        return solution if valid is None else np.where(valid, solution, np.nan)

    return solve


def _logsumexp(u: np.ndarray) -> np.ndarray:
    top = np.max(u, axis=-1, keepdims=True)
    return np.log(np.sum(np.exp(u - top), axis=-1)) + top[..., 0]


def _softmax(u: np.ndarray) -> np.ndarray:
    powers = np.exp(u - np.max(u, axis=-1, keepdims=True))
    return powers / np.sum(powers, axis=-1, keepdims=True)


register(
    namespace(np.zeros(0)),
    Library(
        while_loop=iterate,
        repeat=repeat,
        factorize=_factorize,
        sigmoid=lambda u: 0.5 * (1.0 + np.tanh(0.5 * u)),
        xlogy=lambda x, y: np.where(x == 0, 0.0, x * np.log(np.where(x == 0, 1.0, y))),
        logsumexp=_logsumexp,
        softmax=_softmax,
        stop_gradient=lambda array: array,
        gradient=lambda function, z: None,
    ),
)
