"""The order of a call, which the `HierarchicalCELMoE` of both packages follow."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, ClassVar

from .checks import check_fused
from .config import CELMoEConfig, HierarchyLevelConfig
from .records import Array, CELMoEOutput, LevelOutput


class Hierarchy:
    """Levels one after the other, then their fusion; a package says how a level runs."""

    config: CELMoEConfig
    fusion: Any
    _kinds: ClassVar[tuple[Any, ...]]  # of arrays
    _read_values: ClassVar[Any]  # a `ReadValues`
    _where: ClassVar[Any]  # of the framework

    @property
    def levels(self) -> tuple[HierarchyLevelConfig, ...]:
        """The configs of the levels that run, in order."""
        return self.config.enabled_levels

    def _run_levels(self, hidden: Array, routes: Mapping[str, Any], given: Any) -> CELMoEOutput:
        """Return the output of a call that is checked.

        Args:
            hidden: of the caller.
            routes: level -> integers `[rows]`.
            given: what `_run_level` and `_fuse` get beside.
        """
        rows = hidden.shape[0]
        levels: OrderedDict[str, LevelOutput] = OrderedDict()
        hiddens = []
        valid = None  # the rows whose routes were all in range; None while that is known of all
        for index, level in enumerate(self.levels):
            valid = self._rows_in_range(valid, routes[level.name], len(level.experts))
            hidden, levels[level.name] = self._run_level(index, hidden, routes[level.name], valid, given)
            hiddens.append(hidden)
        fused = self._fuse(hiddens, given)
        check_fused(fused, rows, self._kinds)
        losses = {name: value for output in levels.values() for name, value in output.losses.items()}
        aux = {name: output.aux for name, output in levels.items()}
        return CELMoEOutput(levels, self._nan_unless(valid, fused), losses, aux, self._weights_of(losses))

    def _rows_in_range(self, valid: Array | None, routes: Array, num_experts: int) -> Array | None:
        """Return which of the `valid` rows have a route in range; None where that was checked eagerly."""
        if self._read_values(routes) is not None:
            return valid
        in_range = (routes >= 0) & (routes < num_experts)
        return in_range if valid is None else valid & in_range

    def _weights_of(self, losses: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
        """Return (name, `loss_weight`) of the losses "level.expert.loss"."""
        experts = {(lv.name, ex.name): ex for lv in self.levels for ex in lv.expert_configs}
        # names of levels and experts have no dots; a loss may have some
        return tuple((name, experts[tuple(name.split(".", 2)[:2])].loss_weight) for name in losses)  # type: ignore[index]

    def _run_level(
        self, index: int, hidden: Array, routes: Array, valid: Array | None, given: Any
    ) -> tuple[Array, LevelOutput]:
        """Return what the next level gets, with zeros in the rows that are not valid, and what the caller gets."""
        raise NotImplementedError

    def _fuse(self, hiddens: list[Array], given: Any) -> Array:
        """Return the fusion of the levels' outputs."""
        return hiddens[-1] if self.fusion is None else self.fusion(hiddens)

    def _nan_unless(self, valid: Array | None, hidden: Array) -> Array:
        """Return `hidden` with NaN in the rows that are not valid."""
        if valid is None:
            return hidden
        return self._where(valid.reshape(-1, *[1] * (hidden.ndim - 1)), hidden, math.nan)
