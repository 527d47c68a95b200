"""The description of a model: plain, frozen, validated values. No framework is imported here."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from ._checks import fail, one_of, whole_number

ACTIVATIONS = ("softplus", "relu", "huber_relu")
TRUNKS = ("shared", "private")
LEARNED = "learned"


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
        for field in fields(self):
            values = tuple(float(value) for value in getattr(self, field.name))
            object.__setattr__(self, field.name, values)
            scale = field.name.endswith("scale")
            rule = "finite numbers > 0" if scale else "finite numbers"
            bad = [value for value in values if not math.isfinite(value) or (scale and value <= 0)]
            if bad:
                fail(
                    "Normalization",
                    field.name,
                    rule,
                    repr(bad[0]),
                    "Use 1.0 for a constant column." if scale else "Remove it.",
                )
        for side in ("input", "output"):
            mean, scale = getattr(self, f"{side}_mean"), getattr(self, f"{side}_scale")
            if len(mean) != len(scale):
                fail(
                    "Normalization",
                    f"{side}_scale",
                    f"{len(mean)} numbers, as {side}_mean has",
                    str(len(scale)),
                    "Make them equal.",
                )


@dataclass(frozen=True)
class HullConfig:
    """Everything that determines a `VectorHull` but its weights.

    Args:
        in_dim: width of the input, >= 1.
        petals: number of convex networks, >= 1.
        out_dim: width of the output; None means `in_dim`.
        hidden_dim: units of a hidden layer; None means `default_hidden_dim(in_dim)`.
        depth: hidden layers of a petal, >= 1.
        trunk: "shared" (one stack of hidden layers for all petals) or "private" (one each).
        group_size: petals averaged before the maximum: 2 (petal i with i+1) or 1 (none).
        temperature: 0.0 for the maximum, T > 0 for its smooth form, "learned" for one trained T an output.
        activation: "softplus", "relu" or "huber_relu".
        gate: add a convex gate inside the first activation.
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
    normalization: Normalization | None = None

    def __post_init__(self) -> None:
        owner = "HullConfig"
        in_dim = whole_number(owner, "in_dim", self.in_dim, 1)
        hidden_dim = default_hidden_dim(in_dim) if self.hidden_dim is None else self.hidden_dim
        values: dict[str, Any] = {
            "in_dim": in_dim,
            "petals": whole_number(owner, "petals", self.petals, 1),
            "out_dim": whole_number(owner, "out_dim", in_dim if self.out_dim is None else self.out_dim, 1),
            "hidden_dim": whole_number(owner, "hidden_dim", hidden_dim, 1),
            "depth": whole_number(owner, "depth", self.depth, 1),
            "trunk": one_of(owner, "trunk", self.trunk, TRUNKS),
            "group_size": one_of(owner, "group_size", self.group_size, (2, 1)),
            "temperature": self._checked_temperature(),
            "activation": one_of(owner, "activation", self.activation, ACTIVATIONS),
            "gate": one_of(owner, "gate", self.gate, (False, True)),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check_normalization()

    def _checked_temperature(self) -> float | str:
        value, rule = self.temperature, f'a finite number >= 0 or "{LEARNED}"'
        fix = f'Pass temperature=0.0 for the maximum or "{LEARNED}".'
        if isinstance(value, str):
            if value != LEARNED:
                fail("HullConfig", "temperature", rule, repr(value), fix)
            return value
        if isinstance(value, bool) or not hasattr(value, "__float__"):
            fail("HullConfig", "temperature", rule, repr(value), fix, TypeError)
        if not math.isfinite(value) or value < 0:
            fail("HullConfig", "temperature", rule, repr(value), fix)
        return float(value)

    def _check_normalization(self) -> None:
        if self.normalization is None:
            return
        if not isinstance(self.normalization, Normalization):
            got = type(self.normalization).__name__
            fail(
                "HullConfig",
                "normalization",
                "a Normalization or None",
                got,
                "Build a Normalization.",
                TypeError,
            )
        for side, size in (("input", self.in_dim), ("output", self.out_dim)):
            got = len(getattr(self.normalization, f"{side}_mean"))
            if got != size:
                fail(
                    "HullConfig",
                    "normalization",
                    f"{size} numbers for the {side}",
                    str(got),
                    "Give one for each coordinate.",
                )

    def to_json(self) -> str:
        """Return the config as JSON with sorted keys; equal configs give equal text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> HullConfig:
        """Return the config that `to_json` wrote. An unknown or a missing field is a ValueError."""
        values = json.loads(text)
        _check_fields(cls, values)
        if values["normalization"] is not None:
            _check_fields(Normalization, values["normalization"])
            values["normalization"] = Normalization(**values["normalization"])
        return cls(**values)


def _check_fields(cls: type, values: Any) -> None:
    """Check that `values` is an object with exactly the fields of the dataclass `cls`."""
    known = [field.name for field in fields(cls)]
    if not isinstance(values, dict):
        fail(
            cls.__name__,
            "from_json",
            "an object",
            type(values).__name__,
            "Pass what to_json wrote.",
            TypeError,
        )
    unknown, missing = sorted(values.keys() - set(known)), sorted(set(known) - values.keys())
    if unknown or missing:
        got = "; ".join([f"unknown {name}" for name in unknown] + [f"missing {name}" for name in missing])
        fail(
            cls.__name__, "from_json", f"the fields {known}", got, "Pass what to_json of this version wrote."
        )
