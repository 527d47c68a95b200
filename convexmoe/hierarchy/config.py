"""The description of a hierarchy: plain, frozen, validated values. No framework is imported here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

from ..errors import copy_plain, fail, finite_number, one_of, printable, share, whole_number
from ..hull.config import check_fields

LEARNED, POSITION_AWARE = "learned", "position_aware"  # kinds of fusion
# Fields that files of the first release do not have. They are written only where they differ from the default, so
# that a model without them is written as the same bytes as before.
LATER: dict[str, dict[str, Any]] = {
    "ExpertConfig": {"gradient_scale": 1.0},
    "CELMoEConfig": {"fusion_type": LEARNED, "fusion_max_positions": 512},
}

ExpertMetadata = Mapping[str, Any]
"""What the config of an expert holds for the factory that builds it."""


class ExpertTable(dict[str, Any]):
    """The experts of a level by name, in order; an integer looks up the expert that a route of that number goes to.

    It cannot be changed, and can be hashed. Two tables are equal if their order is, too: routes depend on it.
    """

    def __missing__(self, key: Any) -> Any:
        if hasattr(key, "__index__") and not isinstance(key, bool) and -len(self) <= key < len(self):
            return tuple(self.values())[key]
        raise KeyError(f"expected one of the experts {list(self)}; got {key!r}")

    def _refuse(self, *args: Any, **options: Any) -> NoReturn:
        raise TypeError(f"{type(self).__name__} cannot be changed; build another config with dataclasses.replace.")

    __setitem__ = __delitem__ = __ior__ = _refuse
    update = setdefault = pop = popitem = clear = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))

    def __eq__(self, other: object) -> bool:
        same = dict.__eq__(self, other)
        return same is True and (not isinstance(other, ExpertTable) or list(self) == list(other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __reduce__(self) -> Any:
        return type(self), (list(self.items()),)


@dataclass(frozen=True)
class ExpertConfig:
    """One expert of a level.

    Args:
        name: unique in its level; not empty, without dots and control characters.
        loss_weight: factor of the expert's own losses in a `LossBundle`, finite and >= 0.
        stop_gradient_from_parent: no gradient flows from this expert to the level before. On the first
            level there is no parent, and the caller's encoder is not cut: see
            `CELMoEConfig.stop_gradient_from_input`.
        metadata: handed to the expert factory, each time as a copy: a mapping of names to text, numbers of Python,
            bool, None, and lists and dicts of them. It is copied, its keys sorted, and a file gives it back as it is.
        gradient_scale: factor in [0, 1] of the gradient from this expert to the level before, whose output is not
            changed by it: 1 passes all of it, 0 none, as does `stop_gradient_from_parent`, which comes first.
    """

    name: str
    loss_weight: float = 1.0
    stop_gradient_from_parent: bool = False
    metadata: ExpertMetadata = field(default_factory=dict, hash=False)
    gradient_scale: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", _check_name("ExpertConfig", self.name))
        scale = self.gradient_scale
        weight = finite_number("ExpertConfig", "loss_weight", self.loss_weight, 0, "Pass loss_weight=1.0.")
        one_of("ExpertConfig", "stop_gradient_from_parent", self.stop_gradient_from_parent, (False, True))
        if not isinstance(self.metadata, Mapping):
            fail("ExpertConfig", "metadata", "a mapping", repr(self.metadata), "Pass a dict.", TypeError)
        if isinstance(scale, bool) or not hasattr(scale, "__float__") or not 0 <= scale <= 1:
            fix = "Pass gradient_scale=1.0 for the whole gradient."
            fail("ExpertConfig", "gradient_scale", "a number in [0, 1]", repr(scale), fix)
        object.__setattr__(self, "loss_weight", weight)
        object.__setattr__(self, "metadata", dict(self.metadata))
        object.__setattr__(self, "metadata", self.copy_metadata())
        object.__setattr__(self, "gradient_scale", float(scale))

    def copy_metadata(self) -> dict[str, Any]:
        """Return a copy of the metadata after its checks; what was put in it later is checked too."""
        return copy_plain("ExpertConfig", "metadata", self.metadata)

    @property
    def scale_to_parent(self) -> float:
        """The factor of the gradient to the level before: 0 where it is stopped."""
        return 0.0 if self.stop_gradient_from_parent else self.gradient_scale


@dataclass(frozen=True)
class HierarchyLevelConfig:
    """One level of the hierarchy.

    Args:
        name: unique in the hierarchy; not empty, without dots and control characters.
        experts: name -> `ExpertConfig`, or a sequence of them; one at least, of different names. It is kept as a
            mapping in that order, which defines the integers of routes.
        fallback_expert: serves the samples whose route is None, and the whole batch where the routing does
            not name the level.
        enabled: a level that is not is left out.
        hidden_size: width of the level's output; None means that of the hierarchy.

    Raises:
        TypeError, ValueError: an entry is no `ExpertConfig`, a key differs from its config's name, names repeat.

    >>> level = HierarchyLevelConfig("family", {"slavic": ExpertConfig("slavic"), "romance": ExpertConfig("romance")})
    >>> level.experts["romance"].loss_weight, level.expert_names
    (1.0, ('slavic', 'romance'))
    """

    name: str
    experts: Mapping[str, ExpertConfig] | Sequence[ExpertConfig]
    fallback_expert: str | None = None
    enabled: bool = True
    hidden_size: int | None = None

    def __post_init__(self) -> None:
        owner = "HierarchyLevelConfig"
        object.__setattr__(self, "name", _check_name(owner, self.name))
        object.__setattr__(self, "experts", self._experts_by_name())
        fallback = self.fallback_expert
        if fallback is not None and fallback not in self.expert_names:
            fix = f"Name one of level {self.name!r}."
            fail(owner, "fallback_expert", f"one of {list(self.experts)}", repr(fallback), fix)
        one_of(owner, "enabled", self.enabled, (True, False))
        if self.hidden_size is not None:
            object.__setattr__(self, "hidden_size", whole_number(owner, "hidden_size", self.hidden_size, 1))

    def _experts_by_name(self) -> ExpertTable:
        """Return what was given as experts, a mapping or a sequence, as a mapping in its order."""
        owner, given = "HierarchyLevelConfig", self.experts
        if isinstance(given, (str, ExpertConfig)) or not isinstance(given, Iterable):
            fix = "Pass {name: ExpertConfig(name)}."
            fail(owner, "experts", "a mapping or a sequence of ExpertConfig", repr(given), fix, TypeError)
        experts = tuple(given.values()) if isinstance(given, Mapping) else tuple(given)
        for expert in experts:
            if not isinstance(expert, ExpertConfig):
                fail(owner, "experts", "ExpertConfig entries", repr(expert), "Wrap it: ExpertConfig(name).", TypeError)
        for key, expert in given.items() if isinstance(given, Mapping) else ():
            if key != expert.name:
                got = f"the key {key!r} for ExpertConfig({expert.name!r})"
                fail(owner, "experts", "keys that are the names of their configs", got, "Rename the key or the config.")
        _check_distinct(owner, "experts", [expert.name for expert in experts])
        return ExpertTable((expert.name, expert) for expert in experts)

    @property
    def expert_names(self) -> tuple[str, ...]:
        """The names of the experts in order: the integer of a route is an index into it."""
        return tuple(self.experts)  # type: ignore[arg-type]

    @property
    def expert_configs(self) -> tuple[ExpertConfig, ...]:
        """The configs of the experts in order."""
        return tuple(self.experts.values())  # type: ignore[union-attr]

    @property
    def default_expert(self) -> str | None:
        """The expert of samples without a route: the fallback, or the only one; None where there is neither."""
        return self.expert_names[0] if len(self.experts) == 1 else self.fallback_expert


@dataclass(frozen=True)
class CELMoEConfig:
    """A hierarchy of experts.

    Args:
        hidden_size: width of the input, of the fused output, and of every level that states no other.
        levels: in the order they run; one enabled at least, of different names.
        use_learned_fusion: fuse the levels' outputs; otherwise the last level's output is the fused one.
        fusion_dropout: share of the fused units that training drops, in [0, 1).
        stop_gradient_from_input: let `stop_gradient_from_parent` and `gradient_scale` on the first level act on the
            caller's encoder.
        fusion_type: "learned" (`LearnedFusion`) or "position_aware" (`PositionAwareFusion`, for levels of width
            `hidden_size`).
        fusion_max_positions: the longest sequence of the position-aware fusion, >= 1.
    """

    hidden_size: int
    levels: Sequence[HierarchyLevelConfig] = ()
    use_learned_fusion: bool = True
    fusion_dropout: float = 0.1
    stop_gradient_from_input: bool = False
    fusion_type: str = LEARNED
    fusion_max_positions: int = 512

    def __post_init__(self) -> None:
        owner = "CELMoEConfig"
        object.__setattr__(self, "hidden_size", whole_number(owner, "hidden_size", self.hidden_size, 1))
        levels = tuple(self.levels)
        for level in levels:
            if not isinstance(level, HierarchyLevelConfig):
                fix = "Build one for each level."
                fail(owner, "levels", "HierarchyLevelConfig entries", repr(level), fix, TypeError)
        _check_distinct(owner, "levels", [level.name for level in levels])
        if not any(level.enabled for level in levels):
            fail(owner, "levels", "one enabled level at least", "none", "Set enabled=True on one.")
        object.__setattr__(self, "levels", levels)
        one_of(owner, "use_learned_fusion", self.use_learned_fusion, (True, False))
        one_of(owner, "stop_gradient_from_input", self.stop_gradient_from_input, (False, True))
        object.__setattr__(self, "fusion_dropout", share(owner, "fusion_dropout", self.fusion_dropout))
        one_of(owner, "fusion_type", self.fusion_type, (LEARNED, POSITION_AWARE))
        positions = whole_number(owner, "fusion_max_positions", self.fusion_max_positions, 1)
        object.__setattr__(self, "fusion_max_positions", positions)
        if self.use_learned_fusion and self.fusion_type == POSITION_AWARE:
            fix = f"Pass fusion_type={LEARNED!r}, or change the level."
            for level in self.enabled_levels:
                if (width := self.width_of(level)) != self.hidden_size:
                    rule = f"levels of width hidden_size={self.hidden_size} for {POSITION_AWARE!r}"
                    fail(owner, "fusion_type", rule, f"{width} on level {level.name!r}", fix)

    @property
    def enabled_levels(self) -> tuple[HierarchyLevelConfig, ...]:
        """The levels that run, in order."""
        return tuple(level for level in self.levels if level.enabled)

    def width_of(self, level: HierarchyLevelConfig) -> int:
        """Return the width of a level's output."""
        return self.hidden_size if level.hidden_size is None else level.hidden_size

    def scales_to_parent(self, level: HierarchyLevelConfig) -> tuple[float, ...]:
        """Return the share of each expert's gradient that it passes to the level before, or to the input.

        On the first level the experts' own scales count only with `stop_gradient_from_input`; else all shares are 1.
        """
        scales = self.stop_gradient_from_input or level.name != self.enabled_levels[0].name
        return tuple(expert.scale_to_parent if scales else 1.0 for expert in level.expert_configs)

    def to_json(self) -> str:
        """Return the config as JSON with sorted keys; equal configs give equal text."""
        values = _json_fields(self)
        for level, fields in zip(self.levels, values["levels"], strict=True):
            experts = level.expert_configs
            fields["experts"] = [_json_fields(expert) | {"metadata": expert.copy_metadata()} for expert in experts]
        return json.dumps(values, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> CELMoEConfig:
        """Return the config that `to_json` wrote. An unknown or a missing field is a ValueError."""
        values = json.loads(text)
        _check_read(cls, values)
        levels = []
        for level in values["levels"]:
            _check_read(HierarchyLevelConfig, level)
            for expert in level["experts"]:
                _check_read(ExpertConfig, expert)
            experts = [ExpertConfig(**expert) for expert in level["experts"]]
            levels.append(HierarchyLevelConfig(**level | {"experts": experts}))
        return cls(**values | {"levels": levels})


def _json_fields(config: Any) -> dict[str, Any]:
    """Return the fields of a config as JSON can hold them, without later ones at their defaults."""
    later = LATER.get(type(config).__name__, {})
    return {name: value for name, value in asdict(config).items() if name not in later or value != later[name]}


def _check_read(cls: type, values: Any) -> None:
    check_fields(cls, values, frozenset(LATER.get(cls.__name__, {})))


def _check_name(owner: str, name: Any) -> str:
    """Return a name as plain text, such as a tensor of the neutral file can be called by."""
    rule = "a name that is not empty and has no dot"
    fix = "Dots separate level and expert in the names of losses."
    if not isinstance(name, str) or not name or "." in name:
        fail(owner, "name", rule, repr(name), fix, ValueError if isinstance(name, str) else TypeError)
    name = copy_plain(owner, "name", str.__str__(name))
    if printable(name) != name or {"\n", "\t"} & set(name):
        rule = "a name without control characters and marks of direction"
        fail(owner, "name", rule, repr(name), "Leave them out: a tensor of a file cannot be called so.")
    return name


def _check_distinct(owner: str, argument: str, names: list[str]) -> None:
    if not names or len(set(names)) < len(names):
        fail(owner, argument, "one entry at least, all of different names", repr(names), "Rename or remove some.")
