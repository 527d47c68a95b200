"""VectorHull: P convex networks on one input, fused into one convex function of it.

Letters: N rows, D in, P petals (and groups), O out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from convexmoe.errors import last_axis, same_dtype
from convexmoe.hull import parameters
from convexmoe.hull.config import HullConfig, Normalization, refuse_inversion
from convexmoe.hull.context import at_context, broadcast_axes, check_context, check_one_context, context_heads
from convexmoe.hull.parameters import Tree, flatten, map_tree, nest, parameter_shapes
from convexmoe.hull.rows import warn_of_rounding

from .fusion import group_values, learned_temperature, maximum, smooth_maximum
from .initialization import initial_parameters
from .petals import act, effective, petal_values
from .positive import add_rows, signed_weight, softplus

Units = dict[str, Tensor]


class Winners(NamedTuple):
    """Which group is the maximum where.

    Args:
        group: index of the winning group, int32 `[..., out_dim]`; the first of a tie.
        margin: its lead over the second, `[..., out_dim]`, in units of the output; inf with one petal.
    """

    group: Tensor
    margin: Tensor


def init(config: HullConfig, *, dtype: torch.dtype | None = None) -> Tree:
    """Return freshly drawn parameters, a nested dict of tensors (see `init.initial_law`).

    Values come from PyTorch's default generator and device; dtype None means PyTorch's default dtype.
    """
    return nest(initial_parameters(config, dtype))


def apply(
    params: Tree, x: Tensor, config: HullConfig, context: Tensor | None = None, *, units: Units | None = None
) -> Tensor:
    """Return the hull of `x`.

    Guarantee: every coordinate of the output is a convex function of x, concave where the config says so, for all
    values of the parameters and of the context, in exact arithmetic (tests/properties/test_convexity.py).

    Args:
        params: the parameters, as `init` gives them.
        x: `[..., in_dim]`, of the dtype of the parameters.
        config: the hull.
        context: `[..., context_dim]` for a hull that has one; the leading axes of both are broadcast.
        units: the config's normalization as tensors; None makes them anew.

    Returns:
        `[..., out_dim]`, of the dtype of the parameters.

    Raises:
        TypeError: x or context is no tensor, or has another dtype than the parameters, or a context is missing.
        ValueError: the last axis of x or context has another width, or the parameters are not those of the config.

    >>> config = HullConfig(3, petals=4, out_dim=2)
    >>> apply(init(config), torch.ones(5, 3), config).shape
    torch.Size([5, 2])
    """
    return evaluate(checked_effective(params, config), x, config, context, units)


def checked_effective(params: Tree, config: HullConfig) -> Tree:
    """Return what `effective` does of parameters that are the config's by name and shape."""
    if not torch.compiler.is_compiling():
        parameters.check_parameters(config, params)
    return effective(params, config)


def evaluate(
    params: Tree, x: Any, config: HullConfig, context: Tensor | None = None, units: Units | None = None
) -> Tensor:
    """Return the hull of `x` from `effective` parameters."""
    units = units_of(config, params["shifts"]) if units is None else units
    rows = given_rows(params, x, config, context, units)
    # a compiler fuses the mean over values, and may not know the number of rows; nor does a trace
    eager = not (torch.compiler.is_compiling() or torch.jit.is_tracing())
    if eager and rows.x_ND.shape[0] > config.in_dim + config.hidden_dim:
        params, config = averaged(rows.params, rows.config)
        rows = rows._replace(params=params, config=config)
    y_NO = bent_part(rows, fused_petals(rows))
    return rescaled(y_NO, units).reshape(*rows.leading, config.out_dim)


class Rows(NamedTuple):
    """What a hull is asked for.

    Args:
        params: effective parameters; config: theirs, without a context where all rows have the same.
        x_ND: rows in normalized units; heads: what the context of each makes of the parameters, or None.
        leading: the leading axes of the answer.
    """

    params: Tree
    config: HullConfig
    x_ND: Tensor
    heads: Tree | None
    leading: tuple[int, ...]


def given_rows(params: Tree, x: Any, config: HullConfig, context: Any, units: Units | None) -> Rows:
    """Return the rows of x and context after their checks; one context is taken into the parameters."""
    x_ND, leading = normalized_rows(params, x, config, units), x.shape[:-1]
    check_context("VectorHull", config, context, (Tensor,))
    if context is None:
        return Rows(params, config, x_ND, None, leading)
    leading, heads = broadcast_axes("VectorHull", x.shape, context.shape), heads_of(params, context, config, units)
    one = math.prod(context.shape[:-1]) == 1
    if leading != x.shape[:-1]:
        x_ND = torch.broadcast_to(x_ND.reshape(x.shape), (*leading, config.in_dim)).reshape(-1, config.in_dim)
    if one:
        return Rows(*at_context(params, config, heads, add_rows), x_ND, None, leading)
    if leading != context.shape[:-1]:
        heads = map_tree(lambda head: spread(head, context.shape[:-1], leading), heads)
    return Rows(params, config, x_ND, heads, leading)


def heads_of(params: Tree, context: Any, config: HullConfig, units: Units | None) -> Tree:
    """Return what each context, `[..., context_dim]`, makes of the parameters, by the names under `context`."""
    check_dtype("context", context, params)
    c_MC = context.reshape(-1, config.context_dim)
    if units is not None and "context_mean" in units:
        c_MC = (c_MC - units["context_mean"]) / units["context_scale"]
    return context_heads(params, config, c_MC, lambda u: act(u, config.activation), softplus, signed_weight)


def spread(head: Tensor, own: tuple[int, ...], leading: tuple[int, ...]) -> Tensor:
    """Return what belongs to contexts with leading axes `own`, one a row of the axes that they are broadcast to."""
    rest = head.shape[1:]
    return torch.broadcast_to(head.reshape(*own, *rest), (*leading, *rest)).reshape(-1, *rest)


def fused_petals(rows: Rows) -> Tensor:
    """Return the fused petals, (N, O), in normalized units."""
    params, config, x_ND, heads, _ = rows
    f_NPO = petal_values(params, x_ND, config, heads)
    y_NO = fuse(f_NPO, params, config, heads)
    if heads is None:
        return y_NO
    own = heads["readout"]
    return y_NO + torch.einsum("nd,ndo->no", x_ND, own["weight"]) + own["bias"]


def fuse(f_NPO: Tensor, params: Tree, config: HullConfig, heads: Tree | None) -> Tensor:
    """Return the fusion of petals, (N, O)."""
    if config.petals == 1:
        return f_NPO[:, 0]
    g_NPO = shifted_groups(f_NPO, params, config, heads)
    if config.temperature == 0.0:
        return maximum(g_NPO)
    if isinstance(config.temperature, str):  # LEARNED
        return smooth_maximum(g_NPO, learned_temperature(params["raw_temperature"]))
    return smooth_maximum(g_NPO, config.temperature)


def shifted_groups(f_NPO: Tensor, params: Tree, config: HullConfig, heads: Tree | None) -> Tensor:
    """Return the groups of petals, with the shifts that their context gives."""
    g_NPO = group_values(f_NPO, params["shifts"], config.group_size)
    return g_NPO if heads is None else g_NPO + heads["readout"]["shifts"][..., None]


def bent_part(rows: Rows, y_NO: Tensor) -> Tensor:
    """Return the output of a hull, (N, O), in normalized units, from its fused petals."""
    config = rows.config
    if config.nonnegative:
        y_NO = softplus(y_NO)
    if config.strong_convexity > 0:
        y_NO = y_NO + half_square(rows.x_ND, config.strong_convexity)
    return -y_NO if config.is_concave else y_NO


def half_square(x_ND: Tensor, factor: float) -> Tensor:
    """Return `factor / 2 ||x||^2`, (N, 1); half precision is widened inside, where it would overflow."""
    wide = x_ND.to(torch.promote_types(x_ND.dtype, torch.float32))
    return (0.5 * factor * torch.sum(wide * wide, dim=-1, keepdim=True)).to(x_ND.dtype)


def winners(
    params: Tree, x: Any, config: HullConfig, context: Tensor | None = None, *, units: Units | None = None
) -> Winners:
    """Return which group is the maximum at `x` and by how much (arguments as for `apply`)."""
    units = units_of(config, params["shifts"]) if units is None else units
    tree, config, x_ND, heads, leading = given_rows(checked_effective(params, config), x, config, context, units)
    f_NPO = petal_values(tree, x_ND, config, heads)
    g_NPO = f_NPO if config.petals == 1 else shifted_groups(f_NPO, tree, config, heads)
    group = torch.argmax(g_NPO, dim=-2)
    won = torch.arange(config.petals, device=group.device)[:, None] == group[:, None, :]
    margin = torch.amax(g_NPO, dim=-2) - torch.amax(g_NPO.masked_fill(won, -math.inf), dim=-2)
    if units is not None:
        margin = margin * units["output_scale"]
    shape = (*leading, config.out_dim)
    return Winners(group.to(torch.int32).reshape(shape), margin.reshape(shape))


def at(params: Tree, config: HullConfig, context: Any) -> tuple[Tree, HullConfig]:
    """Return effective parameters and the config of the plain hull in x that a hull is at one context.

    Args:
        params, config: of the hull; context: `[context_dim]`, in original units.

    Raises:
        TypeError, ValueError: the hull has no context; it is no tensor, of another shape or dtype.
    """
    weights = checked_effective(params, config)
    check_one_context("VectorHull", config, context, (Tensor,))
    heads = heads_of(weights, context, config, units_of(config, weights["shifts"]))
    return at_context(weights, config, heads, add_rows)


def averaged(params: Tree, config: HullConfig) -> tuple[Tree, HullConfig]:
    """Return effective parameters, and a config without means, that give the same function."""
    return parameters.averaged(params, config, torch.roll)


def fold_parameters(params: Tree, config: HullConfig) -> tuple[Tree, HullConfig]:
    """Return effective parameters and a config for inference that give the same function.

    Non-negative weights are computed once; with a shared trunk the read-outs are `averaged` as well.
    """
    return averaged(checked_effective(params, config), config)


def units_of(config: HullConfig, like: Tensor) -> Units | None:
    """Return the config's normalization as tensors of the dtype and device of `like`."""
    if config.normalization is None:
        return None
    values = asdict(config.normalization).items()
    return {name: torch.tensor(own, dtype=like.dtype, device=like.device) for name, own in values if own}


def checked_params(config: HullConfig, params: Tree) -> dict[str, Tensor]:
    """Return a copy of the parameters by dotted name after their checks: names, shapes, one floating dtype."""
    flat = parameters.check_parameters(config, params, (Tensor,))
    return {name: value.detach().clone() for name, value in flat.items()}


def normalized_rows(params: Tree, x: Any, config: HullConfig, units: Units | None) -> Tensor:
    """Return `x` after its checks as rows (N, D) in normalized units."""
    last_axis("VectorHull", "x", x, config.in_dim, (Tensor,))
    check_dtype("x", x, params)
    x_ND = x.reshape(-1, config.in_dim)
    if units is None:
        return x_ND
    if config.normalization is not None and not torch.compiler.is_compiling():
        warn_of_rounding(config.normalization, x.dtype)
    return (x_ND - units["input_mean"]) / units["input_scale"]


def check_dtype(argument: str, value: Tensor, params: Tree) -> None:
    """Check that a tensor has the dtype of the parameters, where autocast does not give it another."""
    device = value.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        same_dtype("VectorHull", argument, value, params["shifts"].dtype)


def rescaled(y_NO: Tensor, units: Units | None) -> Tensor:
    """Return `output_mean + output_scale * y`."""
    if units is None:
        return y_NO
    return units["output_mean"] + units["output_scale"] * y_NO


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
