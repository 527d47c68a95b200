"""The description of a hull: plain, frozen, validated values. No framework is imported here."""

from __future__ import annotations

import json
import math
import numbers
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import fail, one_of, whole_number
from .activations import ACTIVATIONS

TRUNKS = ("shared", "private")
LEARNED, LEAST_TEMPERATURE, LARGEST_TEMPERATURE = "learned", 1e-3, 1e6
LARGEST_DEPTH, LARGEST_STRONG_CONVEXITY = 1000, 1e6


def default_hidden_dim(in_dim: int) -> int:
    """Return the hidden units of a petal: an eighth of the input width, 64 at least.

    An eighth keeps a wide hull within 1.2 times the parameters of an MLP with four times its width
    (`benchmarks/hull_cost.py`); the floor leaves a narrow input the units to fit with.

    >>> default_hidden_dim(1024), default_hidden_dim(2)
    (128, 64)
    """
    return max(64, in_dim // 8)


@dataclass(frozen=True)
class Normalization:
    """Affine change of units around a hull: `y = output_mean + output_scale * f((x - input_mean) / input_scale)`.

    Scales are positive, so that a convex f stays convex.

    Args:
        input_mean, input_scale: `in_dim` numbers each, in the units of the input.
        output_mean, output_scale: `out_dim` numbers each, in the units of the output.
    """

    input_mean: tuple[float, ...]
    input_scale: tuple[float, ...]
    output_mean: tuple[float, ...]
    output_scale: tuple[float, ...]

    def __post_init__(self) -> None:
        for entry in fields(self):
            values = _floats(entry.name, getattr(self, entry.name))
            object.__setattr__(self, entry.name, values)
            scale = entry.name.endswith("scale")
            rule = "finite numbers > 0" if scale else "finite numbers"
            bad = [value for value in values if not math.isfinite(value) or (scale and value <= 0)]
            if bad:
                fix = "Use 1.0 for a constant column." if scale else "Remove it."
                fail("Normalization", entry.name, rule, repr(bad[0]), fix)
        for side in ("input", "output"):
            mean, scale = getattr(self, f"{side}_mean"), getattr(self, f"{side}_scale")
            if len(mean) != len(scale):
                rule = f"{len(mean)} numbers, as {side}_mean has"
                fail("Normalization", f"{side}_scale", rule, str(len(scale)), "Make them equal.")


def _floats(name: str, values: Any) -> tuple[float, ...]:
    """Return a sequence of numbers as floats; those that no float holds as infinity."""
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        fail("Normalization", name, "a sequence of numbers", repr(values), "Pass one for each coordinate.", TypeError)
    try:
        return tuple(float(value) for value in values)
    except OverflowError:
        return (math.inf,)


def _real(name: str, value: Any, least: float, most: float, rule: str, fix: str) -> float:
    """Return a real number within bounds as a float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        fail("HullConfig", name, rule, repr(value), fix, TypeError)
    if not least <= value <= most:  # type: ignore[operator]
        fail("HullConfig", name, rule, repr(value), fix)
    return float(value)


@dataclass(frozen=True)
class HullConfig:
    """Everything that determines a `VectorHull` but its weights.

    Args:
        in_dim: width of the input, >= 1.
        petals: number of convex networks, >= 1.
        out_dim: width of the output; None means `in_dim`.
        hidden_dim: units of a hidden layer; None means `default_hidden_dim(in_dim)`.
        depth: hidden layers of a petal, 1 to 1000.
        trunk: "shared" (one stack of hidden layers for all petals) or "private" (one each).
        group_size: petals averaged before the maximum: 2 (petal i with i+1) or 1 (none).
        temperature: 0.0 for the maximum, T in [1e-3, 1e6] for its smooth form, "learned" for one trained T an output.
        activation: a name in `convexmoe.hull.activations`: "softplus", "relu" or "huber_relu".
        gate: add a convex gate inside the first activation.
        strong_convexity: mu in [0, 1e6]: `mu / 2 ||x||^2` is added to every output, x and y in normalized units.
        normalization: the change of units around the hull, or None.
    """

    in_dim: int
    petals: int
    out_dim: int = None  # type: ignore[assignment]  # None is replaced below
    hidden_dim: int = None  # type: ignore[assignment]
    depth: int = 1
    trunk: str = "shared"
    group_size: int = 2
    temperature: float | str = 0.0
    activation: str = "softplus"
    gate: bool = False
    strong_convexity: float = 0.0
    normalization: Normalization | None = None

    def __post_init__(self) -> None:
        owner, most = "HullConfig", LARGEST_STRONG_CONVEXITY
        fix = "Pass strong_convexity=0.0 to leave it out."
        in_dim = whole_number(owner, "in_dim", self.in_dim, 1)
        hidden_dim = default_hidden_dim(in_dim) if self.hidden_dim is None else self.hidden_dim
        values: dict[str, Any] = {
            "in_dim": in_dim,
            "petals": whole_number(owner, "petals", self.petals, 1),
            "out_dim": whole_number(owner, "out_dim", in_dim if self.out_dim is None else self.out_dim, 1),
            "hidden_dim": whole_number(owner, "hidden_dim", hidden_dim, 1),
            "depth": whole_number(owner, "depth", self.depth, 1, LARGEST_DEPTH),
            "trunk": one_of(owner, "trunk", self.trunk, TRUNKS),
            "group_size": one_of(owner, "group_size", self.group_size, (2, 1)),
            "temperature": self._real_temperature(),
            "activation": one_of(owner, "activation", self.activation, tuple(ACTIVATIONS)),
            "gate": one_of(owner, "gate", self.gate, (False, True)),
            "strong_convexity": _real(
                "strong_convexity", self.strong_convexity, 0, most, f"a number in [0, {most:g}]", fix
            ),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check_normalization()

    def _real_temperature(self) -> float | str:
        value, least, most = self.temperature, LEAST_TEMPERATURE, LARGEST_TEMPERATURE
        rule = f'0, a number in [{least:g}, {most:g}] or "{LEARNED}"'
        fix = f'Pass temperature=0.0 for the maximum or "{LEARNED}".'
        if isinstance(value, str):
            if value != LEARNED:
                fail("HullConfig", "temperature", rule, repr(value), fix)
            return value
        is_zero = isinstance(value, numbers.Real) and value == 0
        return _real("temperature", value, 0 if is_zero else least, most, rule, fix)

    def _check_normalization(self) -> None:
        if self.normalization is None:
            return
        if not isinstance(self.normalization, Normalization):
            got = type(self.normalization).__name__
            fail("HullConfig", "normalization", "a Normalization or None", got, "Build a Normalization.", TypeError)
        for side, size in (("input", self.in_dim), ("output", self.out_dim)):
            got = len(getattr(self.normalization, f"{side}_mean"))
            if got != size:
                rule, fix = f"{size} numbers for the {side}", "Give one for each coordinate."
                fail("HullConfig", "normalization", rule, str(got), fix)

    def to_json(self) -> str:
        """Return the config as JSON with sorted keys; equal configs give equal text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> HullConfig:
        """Return the config that `to_json` wrote. An unknown or a missing field is a ValueError."""
        values = json.loads(text)
        check_fields(cls, values)
        if values["normalization"] is not None:
            check_fields(Normalization, values["normalization"])
            values["normalization"] = Normalization(**values["normalization"])
        return cls(**values)


def read_exactly(cls: Any, values: Any) -> Any:
    """Return the config of a class with `from_json` of plain values that are what its `to_json` writes, to the kind."""
    config = cls.from_json(json.dumps(values))
    wanted = json.loads(config.to_json())
    for name in sorted(wanted.keys() | values.keys()):
        rule, got = (json.dumps(fields.get(name), sort_keys=True)[:80] for fields in (wanted, values))
        if json.dumps(wanted.get(name), sort_keys=True) != json.dumps(values.get(name), sort_keys=True):
            fail(cls.__name__, name, rule, got, "Pass what to_json of this version wrote.")
    return config


def refuse_inversion(invert: Any) -> None:
    """Refuse an option that newer releases of torch-mice have: a hull without it would be another model in silence."""
    if invert is not None:
        fix = "Leave it out, and see docs/pages/migrating.md; for a concave function take minus a hull."
        got = f"{invert!r}, an option of torch-mice 0.5, whose hull is another model"
        fail("VectorHull", "invert", "no such option", got, fix, TypeError)


def check_fields(cls: type, values: Any, optional: frozenset[str] = frozenset()) -> None:
    """Check that `values` is an object with the fields of the dataclass `cls`, all but the optional ones."""
    known = [field.name for field in fields(cls)]
    if not isinstance(values, dict):
        fail(cls.__name__, "from_json", "an object", type(values).__name__, "Pass what to_json wrote.", TypeError)
    unknown, missing = sorted(values.keys() - set(known)), sorted(set(known) - values.keys() - optional)
    if unknown or missing:
        got = "; ".join([f"unknown {name}" for name in unknown] + [f"missing {name}" for name in missing])
        fail(cls.__name__, "from_json", f"the fields {known}", got, "Pass what to_json of this version wrote.")
