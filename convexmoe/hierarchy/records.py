"""What passes between a hierarchy, its experts and its caller; the arrays in it are those of either package.

Both packages register these records as pytree nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Array = Any  # of the package that made it
ExpertAux = Mapping[str, Any]
"""What an expert hands out beside its rows and losses, by name."""


@dataclass(frozen=True)
class ExpertBatch:
    """What an expert gets: in PyTorch all its rows, in JAX one sample, whose arrays have no axis of rows.

    A pytree node; in JAX what is no array in context and state is part of its structure.

    Args:
        hidden: `[rows, hidden_size]` or `[rows, length, hidden_size]`; in JAX without `rows`.
        context: the rows' part of the context; what is marked `Shared` or is no array is whole.
        mask: the rows' part of the mask.
        state: what the caller passed as `state`, and beside it "level", the name of the level, and "expert": in
            PyTorch the name of the expert, in JAX its index in the level, a traced int32, because experts of one
            structure share one trace.
        key: for `sample_dropout`, None outside training; in PyTorch int64 `[rows]`, in JAX the sample's own PRNG key.
            The key of a row does not depend on other samples or routes.
    """

    hidden: Array
    context: Any = None
    mask: Any = None
    state: Any = None
    key: Any = None


@dataclass(frozen=True)
class ExpertResult:
    """What an expert returns for its rows, in JAX for one sample. A pytree node.

    Args:
        hidden: `[rows, ..., width of the level]`; in JAX without `rows`.
        losses: name -> scalar; in PyTorch the mean over the rows, in JAX of the sample, averaged over the rows later.
        aux: anything else; in JAX arrays, which the level collects by expert.
    """

    hidden: Array
    losses: Mapping[str, Array] = field(default_factory=dict)
    aux: Any = field(default_factory=dict)


@dataclass(frozen=True)
class LevelOutput:
    """What one level returns. A pytree node.

    Args:
        name: of the level.
        hidden: `[rows, ..., width]`.
        routes: index of each sample's expert, `[rows]`, in PyTorch int64, in JAX int32.
        losses: `level.expert.loss` -> mean over the rows of the expert. An expert without rows has none in PyTorch, and
            zeros in JAX.
        aux: expert -> its aux. In PyTorch for the rows of the expert in their order, and only of experts with rows; in
            JAX with a leading axis of all rows, valid where the route is that expert's.
        expert_names: of the level; a route is an index into them.
    """

    name: str
    hidden: Array
    routes: Array
    losses: dict[str, Array]
    aux: dict[str, Any]
    expert_names: tuple[str, ...] = ()

    @property
    def route_names(self) -> list[str]:
        """The name of each sample's expert. The routes are copied to the host, so it fails under `jax.jit`."""
        return [self.expert_names[route] for route in self.routes.tolist()]


@dataclass(frozen=True)
class CELMoEOutput:
    """What the hierarchy returns. A pytree node.

    Args:
        levels: name -> `LevelOutput` of each enabled level, in order.
        fused_hidden: `[rows, ..., hidden_size]`.
        losses: the losses of all levels by name, unweighted.
        aux: level -> its aux.
        weights: (name, `loss_weight`) of every loss; one that is left out has the weight 1.
    """

    levels: Mapping[str, LevelOutput]
    fused_hidden: Array
    losses: dict[str, Array]
    aux: dict[str, Any]
    weights: tuple[tuple[str, float], ...] = ()

    @property
    def loss_weights(self) -> dict[str, float]:
        """The `loss_weight` of every loss by name."""
        return dict(self.weights)
