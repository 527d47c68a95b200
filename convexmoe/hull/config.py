"""The description of a hull: plain, frozen, validated values. No framework is imported here."""

from __future__ import annotations

import json
import math
import numbers
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

from ..errors import fail, one_of, whole_number
from .activations import ACTIVATIONS

TRUNKS, CURVATURES = ("shared", "private"), ("convex", "concave")
LEARNED, LEAST_TEMPERATURE, LARGEST_TEMPERATURE = "learned", 1e-3, 1e6
LARGEST_DEPTH, LARGEST_STRONG_CONVEXITY = 1000, 1e6
CONTEXT_HIDDEN_DIM = 32
# Fields that came later, with the values at which JSON leaves them out: older files are read, and written alike.
LATER: dict[str, dict[str, Any]] = {
    "Normalization": {"context_mean": (), "context_scale": ()},
    "HullConfig": {
        "context_dim": 0,
        "context_hidden_dim": None,
        "monotone": None,
        "curvature": "convex",
        "nonnegative": False,
    },
}


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
        context_mean, context_scale: `context_dim` numbers each, in the units of the context; () for 0 and 1.
    """

    input_mean: tuple[float, ...]
    input_scale: tuple[float, ...]
    output_mean: tuple[float, ...]
    output_scale: tuple[float, ...]
    context_mean: tuple[float, ...] = ()
    context_scale: tuple[float, ...] = ()

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
        for side in ("input", "output", "context"):
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
        strong_convexity: mu in [0, 1e6]: `mu / 2 ||x||^2` is added to every output, x and y in normalized units;
            subtracted from concave ones.
        normalization: the change of units around the hull, or None.
        context_dim: width of a second input in which nothing is assumed, >= 0.
        context_hidden_dim: hidden units of the network that reads it; None means 32. None without a context.
        monotone: for each input -1 (every output falls), 0 or 1 (rises), or None.
        curvature: "convex", or "concave" for minus a convex hull.
        nonnegative: outputs are >= 0, of concave hulls <= 0.
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
    context_dim: int = 0
    context_hidden_dim: int | None = None
    monotone: tuple[int, ...] | None = None
    curvature: str = "convex"
    nonnegative: bool = False

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
            "context_dim": whole_number(owner, "context_dim", self.context_dim, 0),
            "context_hidden_dim": self._whole_context_hidden_dim(),
            "monotone": self._whole_monotone(in_dim),
            "curvature": one_of(owner, "curvature", self.curvature, CURVATURES),
            "nonnegative": one_of(owner, "nonnegative", self.nonnegative, (False, True)),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if self.monotone is not None and self.strong_convexity > 0:
            rule, got = "0 for a monotone hull: ||x||^2 falls and rises", f"{self.strong_convexity:g}"
            fail(owner, "strong_convexity", rule, got, "Leave out one of monotone and strong_convexity.")
        self._check_normalization()

    @property
    def is_concave(self) -> bool:
        """Whether it is minus a convex hull."""
        return self.curvature == "concave"

    @property
    def signs(self) -> tuple[int, ...] | None:
        """For each input the sign of the weights on it, 0 for any; None where all are free. A concave hull turns it."""
        return self.monotone if not self.is_concave or self.monotone is None else tuple(-s for s in self.monotone)

    @cached_property
    def without_means(self) -> HullConfig:
        """The config of a hull whose groups are single petals, made once: every forward of many rows asks for it."""
        return replace(self, group_size=1)

    def negate(self) -> HullConfig:
        """Return the config of minus the hull: with the same parameters it is concave where this one is convex.

        >>> HullConfig(2, petals=3, monotone=(1, 0)).negate().monotone
        (-1, 0)
        """
        units = self.normalization
        units = units and replace(units, output_mean=tuple(0.0 - mean for mean in units.output_mean))
        monotone = self.monotone and tuple(-sign for sign in self.monotone)
        return replace(self, curvature=CURVATURES[not self.is_concave], monotone=monotone, normalization=units)

    @property
    def free_inputs(self) -> list[int]:
        """The inputs whose weights may have any sign."""
        return [j for j, sign in enumerate(self.signs or (0,) * self.in_dim) if not sign]

    def _whole_context_hidden_dim(self) -> int | None:
        size = self.context_hidden_dim
        if self.context_dim:
            size = CONTEXT_HIDDEN_DIM if size is None else size
            return whole_number("HullConfig", "context_hidden_dim", size, 1)
        if size is not None:
            fix = "Pass context_dim too, or leave it out."
            fail("HullConfig", "context_hidden_dim", "None without a context", repr(size), fix)
        return None

    def _whole_monotone(self, in_dim: int) -> tuple[int, ...] | None:
        if self.monotone is None:
            return None
        rule, fix = f"None or {in_dim} numbers of -1, 0 and 1", "Give one for each input."
        if isinstance(self.monotone, str) or not hasattr(self.monotone, "__iter__"):
            fail("HullConfig", "monotone", rule, repr(self.monotone), fix, TypeError)
        signs = tuple(self.monotone)
        if len(signs) != in_dim or any(isinstance(s, bool) or s not in (-1, 0, 1) for s in signs):
            fail("HullConfig", "monotone", rule, repr(self.monotone), fix)
        return tuple(int(s) for s in signs) if any(signs) else None

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
        for side, size in (("input", self.in_dim), ("output", self.out_dim), ("context", self.context_dim)):
            got = len(getattr(self.normalization, f"{side}_mean"))
            if got != size and (got or side != "context"):
                rule, fix = f"{size} numbers for the {side}", "Give one for each coordinate."
                fail("HullConfig", "normalization", rule, str(got), fix)
        mean = self.normalization.output_mean
        if self.nonnegative and any(mean):
            fix = "Scale the output without taking off its mean."
            fail("HullConfig", "normalization", "output_mean=0 for a nonnegative hull", repr(mean), fix)

    def to_json(self) -> str:
        """Return the config as JSON with sorted keys; equal configs give equal text."""
        values = asdict(self)
        if self.normalization is not None:
            values["normalization"] = without_later("Normalization", values["normalization"])
        return json.dumps(without_later("HullConfig", values), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> HullConfig:
        """Return the config that `to_json` wrote. An unknown or a missing field is a ValueError."""
        values = json.loads(text)
        check_fields(cls, values, frozenset(LATER["HullConfig"]))
        if values["normalization"] is not None:
            check_fields(Normalization, values["normalization"], frozenset(LATER["Normalization"]))
            values["normalization"] = Normalization(**values["normalization"])
        return cls(**values)


def without_later(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a config without the later ones that have their defaults."""
    return {key: value for key, value in values.items() if key not in LATER[name] or value != LATER[name][key]}


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
        fix = 'Leave it out, and see docs/pages/migrating.md; for a concave function pass curvature="concave".'
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
