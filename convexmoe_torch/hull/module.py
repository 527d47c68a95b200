"""VectorHull: P convex networks on one input, fused into one convex function of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from convexmoe.hull import parameters
from convexmoe.hull.config import HullConfig, Normalization, refuse_inversion
from convexmoe.hull.parameters import Tree, flatten, nest, parameter_shapes

from .forward import Units, Winners, at, checked_effective, evaluate, fold_parameters, init, units_of, winners
from .petals import effective


def checked_params(config: HullConfig, params: Tree) -> dict[str, Tensor]:
    """Return a copy of the parameters by dotted name after their checks: names, shapes, one floating dtype."""
    flat = parameters.check_parameters(config, params, (Tensor,))
    return {name: value.detach().clone() for name, value in flat.items()}


def module_of(tree: Tree, trainable: bool) -> nn.Module:
    """Return the module that holds a nested dict of tensors under the same names."""
    if all(isinstance(value, dict) for value in tree.values()):
        return nn.ModuleDict({name: module_of(branch, trainable) for name, branch in tree.items()})
    return nn.ParameterDict({name: nn.Parameter(value, trainable) for name, value in tree.items()})


class HullModule(nn.Module):
    """What `VectorHull` and `FoldedHull` share: a config, its parameters by name, its normalization.

    The normalization stands in the config and, as buffers, in `state_dict`: loading a `state_dict` of a
    hull in other units changes both, loading one into a hull without normalization is an error.
    """

    normalization: nn.Module | None

    def __init__(self, config: HullConfig, params: Tree, trainable: bool) -> None:
        super().__init__()
        self.config = config
        for name, value in params.items():
            is_leaf = isinstance(value, Tensor)
            setattr(self, name, nn.Parameter(value, trainable) if is_leaf else module_of(value, trainable))
        self.normalization = None
        units = units_of(config, params["shifts"])
        if units is not None:
            self.normalization = nn.Module()
            for name, value in units.items():
                self.normalization.register_buffer(name, value)
            self.register_load_state_dict_post_hook(_read_normalization)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move or cast the module; the buffers are made anew of the config, not cast from cast ones."""
        super()._apply(fn, recurse)
        if self.normalization is not None:
            for name, value in (units_of(self.config, self.get_parameter("shifts")) or {}).items():
                setattr(self.normalization, name, value)
        return self

    @property
    def tree(self) -> Tree:
        """The parameters as a tree that is indexed by name: what `hull.apply` works on."""
        names = dict.fromkeys(name.partition(".")[0] for name in parameter_shapes(self.config))
        return {name: getattr(self, name) for name in names}

    @property
    def units(self) -> Units | None:
        """The normalization as tensors, None without one."""
        return None if self.normalization is None else dict(self.normalization.named_buffers())

    @torch.no_grad()
    def at(self, context: Tensor) -> FoldedHull:
        """Return the plain hull in x at one context, `[context_dim]`: what is minimized, exported, proved."""
        return FoldedHull(*at(self.tree, self.config, context))

    def extra_repr(self) -> str:
        return ", ".join(f"{field.name}={getattr(self.config, field.name)!r}" for field in fields(self.config))


def _read_normalization(module: Any, _: Any) -> None:
    """Take the config's normalization from the buffers that `load_state_dict` has filled, where they differ."""
    own = units_of(module.config, module.shifts) or {}
    if any(not torch.equal(own[name], value) for name, value in module.units.items()):
        units = {name: tuple(value.tolist()) for name, value in module.units.items()}
        module.config = replace(module.config, normalization=Normalization(**units))


class FoldedHull(HullModule):
    """A hull for inference: the same function, its weights computed once and frozen.

    Args:
        params: as `init` or `fold_parameters` gives them.
        config: the hull they belong to.

    Raises:
        ValueError: the parameters are not those of the config.
    """

    def __init__(self, params: Tree, config: HullConfig) -> None:
        own = {name: value.detach().clone() for name, value in flatten(checked_effective(params, config)).items()}
        super().__init__(config, nest(own), trainable=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the hull of `x`, `[..., in_dim]` and `[..., context_dim]` -> `[..., out_dim]`."""
        return evaluate(self.tree, x, self.config, context, self.units)


class VectorHull(HullModule):
    """P convex networks ("petals") on one input, fused by an overlapping max-of-means.

    `y = max_i (f_i + f_{i+1 mod P}) / 2 + s_i`, coordinate by coordinate, with f_p the petals
    (`petals.py`) and s the learned shifts (`fusion.py`). At P = 2 both groups have the same mean, so that
    the maximum chooses between shifts only; at even P, adding `(-1)^p g(x)` to the petals changes nothing.

    Guarantee: every coordinate of the output is a convex function of x (concave with `curvature="concave"`), for all
    values of the parameters and of the context, in exact arithmetic (tests/properties/test_convexity.py).

    Args:
        in_dim, petals, out_dim, hidden_dim, depth, trunk, group_size, temperature, activation, gate,
            strong_convexity, normalization, context_dim, context_hidden_dim, monotone, curvature, nonnegative: the
            fields of `HullConfig`.
        invert: an option of torch-mice 0.5, whose hull is another model: refused.
        dtype: floating dtype of the parameters; None means PyTorch's default.

    Raises:
        TypeError, ValueError: a field is out of its range.

    >>> model = VectorHull(in_dim=3, petals=4)
    >>> model(torch.ones(5, 3)).shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        in_dim: int,
        petals: int,
        out_dim: int | None = None,
        *,
        hidden_dim: int | None = None,
        depth: int = 1,
        trunk: str = "shared",
        group_size: int = 2,
        temperature: float | str = 0.0,
        activation: str = "softplus",
        gate: bool = False,
        strong_convexity: float = 0.0,
        normalization: Normalization | None = None,
        context_dim: int = 0,
        context_hidden_dim: int | None = None,
        monotone: Sequence[int] | None = None,
        curvature: str = "convex",
        nonnegative: bool = False,
        invert: None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        refuse_inversion(invert)
        config = HullConfig(
            in_dim=in_dim,
            petals=petals,
            out_dim=out_dim,  # type: ignore[arg-type]
            hidden_dim=hidden_dim,  # type: ignore[arg-type]
            depth=depth,
            trunk=trunk,
            group_size=group_size,
            temperature=temperature,
            activation=activation,
            gate=gate,
            strong_convexity=strong_convexity,
            normalization=normalization,
            context_dim=context_dim,
            context_hidden_dim=context_hidden_dim,
            monotone=monotone,  # type: ignore[arg-type]
            curvature=curvature,
            nonnegative=nonnegative,
        )
        super().__init__(config, init(config, dtype=dtype), trainable=True)

    @classmethod
    def from_config(cls, config: HullConfig, *, dtype: torch.dtype | None = None) -> VectorHull:
        """Return a new hull with this config."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(config)}, dtype=dtype)

    @classmethod
    def from_params(cls, config: HullConfig, params: Tree) -> VectorHull:
        """Return a hull that holds a copy of these parameters, a nested dict as `init` gives it.

        Raises:
            ValueError: names or shapes differ from those of the config; all differences are listed.
        """
        flat = checked_params(config, params)
        with torch.device("meta"):
            model = cls.from_config(config, dtype=flat["shifts"].dtype)
        HullModule.__init__(model, config, nest(flat), trainable=True)
        return model

    @property
    def params(self) -> Tree:
        """The parameters as a nested dict of tensors: what `hull.apply` and `torch.func` work on."""
        return nest(dict(self.named_parameters()))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the hull of `x`, `[..., in_dim]` -> `[..., out_dim]`, of the dtype of the parameters.

        Args:
            x: `[..., in_dim]`; context: `[..., context_dim]` for a hull that has one, leading axes broadcast.
        """
        return evaluate(effective(self.tree, self.config), x, self.config, context, self.units)

    def winners(self, x: Tensor, context: Tensor | None = None) -> Winners:
        """Return which group is the maximum at `x`, and its margin, for every output coordinate."""
        return winners(self.tree, x, self.config, context, units=self.units)

    @torch.no_grad()
    def fold(self) -> FoldedHull:
        """Return the same function for inference, with its weights computed once."""
        return FoldedHull(*fold_parameters(self.tree, self.config))
