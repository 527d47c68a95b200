"""One adapter a framework for hierarchies: build from a description, run, differentiate; numpy in and out."""

from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from backends import BACKENDS, NAMES
from flax import nnx
from hierarchies import Case, config_of

import convexmoe_jax
import convexmoe_torch


def losses_of(package: Any, cotangents: dict[str, Any]) -> Any:
    """The loss that the naive twin has: every output against its cotangent, by the API."""
    api = package.CELMoELossAPI()
    api.add_global("fused", lambda output: (cotangents["fused"] * output.fused_hidden).sum())
    for name in cotangents.keys() - {"fused"}:
        api.add_level(name, "out", lambda level: (cotangents[level.name] * level.hidden).sum())
    return api


class JaxTanh(convexmoe_jax.ExpertModule):
    def __init__(self, in_dim, out_dim, dtype, rngs):
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (in_dim, out_dim), dtype))

    def __call__(self, batch):
        mask = batch.mask[..., None]
        hidden = jnp.tanh(batch.hidden @ self.weight[...]) * mask * batch.state["scale"]
        hidden = hidden + batch.context["shift"] + batch.context["of_all"][0].sum()
        losses = {"act": (hidden**2).mean(), "size": jnp.abs(hidden).sum()}
        return convexmoe_jax.ExpertResult(hidden, losses, {"largest": hidden.max()})


class JaxIdentity(convexmoe_jax.ExpertModule):
    def __call__(self, batch):
        return convexmoe_jax.ExpertResult(batch.hidden)


class TorchTanh(convexmoe_torch.ExpertModule):
    def __init__(self, in_dim, out_dim):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(in_dim, out_dim))

    def forward(self, batch):
        mask = batch.mask[..., None]
        hidden = torch.tanh(batch.hidden @ self.weight) * mask * batch.state["scale"]
        shift = batch.context["shift"].reshape(-1, *[1] * (hidden.ndim - 1))
        hidden = hidden + shift + batch.context["of_all"][0].sum()
        losses = {"act": (hidden**2).mean(), "size": hidden.abs().flatten(1).sum(1).mean()}
        return convexmoe_torch.ExpertResult(hidden, losses, {"largest": hidden.flatten(1).amax(1)})


class TorchIdentity(convexmoe_torch.ExpertModule):
    def forward(self, batch):
        return convexmoe_torch.ExpertResult(batch.hidden)


class JaxEngine:
    name = "jax"
    package = convexmoe_jax

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Drop what is compiled: needed after a function of the package was replaced."""
        self.compiled: dict[Any, Any] = {}

    def precision(self, dtype: str) -> Any:
        return jax.enable_x64(True) if dtype == "float64" else nullcontext()

    def array(self, value: np.ndarray) -> jax.Array:
        return jnp.array(value)

    def factory(self, dtype: str) -> Any:
        """The expert factory of a description."""

        def make(level, expert, metadata, *, rngs):
            kind, widths = metadata["kind"], (metadata["in_dim"], metadata["out_dim"])
            options = {"dtype": NAMES[dtype], "rngs": rngs}
            if kind == "identity":
                return JaxIdentity()
            if kind == "linear":
                return convexmoe_jax.LinearExpert(*widths, **options)
            if kind == "tanh":
                return JaxTanh(*widths, **options)
            return convexmoe_jax.MLPExpert(widths[0], int(kind[3:]), widths[1], **options)

        return make

    def build(self, case: Case, weights: dict[str, np.ndarray], dtype: str = "float64", every="reverse") -> Any:
        """The hierarchy with these weights."""
        with self.precision(dtype):
            model = convexmoe_jax.HierarchicalCELMoE(
                config_of(convexmoe_jax, case), self.factory(dtype), differentiation=every, rngs=nnx.Rngs(0)
            )
            if case.fusion:
                widths = [out for _, _, out in case.enabled]
                model.fusion = convexmoe_jax.LearnedFusion(
                    case.hidden_size, widths, case.dropout, dtype=NAMES[dtype], rngs=nnx.Rngs(0)
                )
            for path, members, variable in self.parameters(model):
                names = [path.format(member) for member in members]
                values = [weights[name].T if "gates" in name else weights[name] for name in names]
                variable[...] = jnp.array(np.stack(values) if members != [""] else values[0], NAMES[dtype])
            return model

    def parameters(self, tree: Any) -> list[tuple[str, list[str], Any]]:
        """(name with a place for the expert, experts, leaf) of everything in a model, or in gradients like it."""
        found = []
        groups = dict(getattr(tree, "groups", ())) or self.groups
        self.groups = groups
        modules = tree["level_modules"] if isinstance(tree, dict) else tree.level_modules
        for level, stacks in modules.items():
            for index, stack in stacks.items():
                members = [f"e{member}" for member in groups[level][int(index)].members]
                path = f"level_modules.{level}.{{}}."
                found += [(path + name, members, leaf) for name, leaf in stack.items()]
        fusion = tree.get("fusion") if isinstance(tree, dict) else tree.fusion
        if fusion is not None:
            gates = fusion["gates"] if isinstance(fusion, dict) else fusion.gates
            norm = fusion["norm"] if isinstance(fusion, dict) else fusion.norm
            found += [(f"fusion.gates.{k}.weight", [""], gate["weight"]) for k, gate in gates.items()]
            found += [(f"fusion.norm.{name}", [""], leaf) for name, leaf in norm.items()]
        return found

    def run(self, case: Case, model: Any, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        """What `naive` gives, with integer routes that are traced."""
        graph, state = nnx.split(model)

        def function(state, floats, rest):
            def total(state, floats):
                output = nnx.merge(graph, state)(
                    floats["x"],
                    rest["routes"],
                    context={
                        "shift": floats["shift"],
                        "of_all": [convexmoe_jax.Shared(floats["common"])],
                        "none": None,
                    },
                    mask=rest["mask"],
                    state={"scale": rest["scale"]},
                )
                bundle = losses_of(convexmoe_jax, rest["cotangents"]).compute(output)
                return bundle.total, output

            return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(state, floats)

        with self.precision(str(inputs["x"].dtype)):
            key = (case, model.differentiation)
            call = self.compiled.setdefault(key, jax.jit(function))
            floats = {name: jnp.array(inputs[name]) for name in ("x", "shift", "common")}
            rest = {name: value for name, value in inputs.items() if name not in floats}
            (total, output), (by_state, by_floats) = call(state, floats, jax.tree.map(jnp.array, rest))
            values = {"fused": output.fused_hidden, "total": total} | output.losses
            values |= {level.name: level.hidden for level in output.levels.values()}
            gradients = dict(by_floats)
            self.groups = dict(model.groups)
            for path, members, leaf in self.parameters({"level_modules": {}} | nnx.to_pure_dict(by_state)):
                for place, member in enumerate(members):
                    gradients[path.format(member)] = leaf[place] if member else leaf
            values |= {f"gradient of {name}": leaf.T if "gates" in name else leaf for name, leaf in gradients.items()}
            return {name: np.array(value) for name, value in values.items()}

    def fused(self, model: Any, x: np.ndarray, routes: dict[str, np.ndarray], seed: int | None) -> np.ndarray:
        """The fused output; a seed switches dropout on."""
        graph, state = nnx.split(model)

        def function(state, x, routes, key):
            return nnx.merge(graph, state)(x, routes, key=key).fused_hidden

        call = self.compiled.setdefault(("fused", model.config), jax.jit(function))
        return np.array(call(state, x, routes, None if seed is None else jax.random.key(seed)))


class TorchEngine:
    name = "torch"
    package = convexmoe_torch

    def forget(self) -> None:
        """Nothing is compiled."""

    def precision(self, dtype: str) -> Any:
        return nullcontext()

    def array(self, value: np.ndarray) -> torch.Tensor:
        return BACKENDS[1].array(value)

    def factory(self, dtype: str) -> Any:
        """The expert factory of a description."""

        def make(level, expert, metadata):
            kind, widths = metadata["kind"], (metadata["in_dim"], metadata["out_dim"])
            if kind == "identity":
                return TorchIdentity()
            if kind == "linear":
                return convexmoe_torch.LinearExpert(*widths)
            if kind == "tanh":
                return TorchTanh(*widths)
            return convexmoe_torch.MLPExpert(widths[0], int(kind[3:]), widths[1])

        return make

    def build(self, case: Case, weights: dict[str, np.ndarray], dtype: str = "float64", every="reverse") -> Any:
        """The hierarchy with these weights, loaded by the documented names."""
        config = config_of(convexmoe_torch, case)
        model = convexmoe_torch.HierarchicalCELMoE(config, self.factory(dtype)).to(getattr(torch, dtype))
        model.load_state_dict({name: self.array(value) for name, value in weights.items()})
        return model

    def run(self, case: Case, model: Any, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        """What `naive` gives; a gradient of None stands as a NaN without a shape."""
        model.zero_grad()
        floats = {n: self.array(inputs[n]).requires_grad_() for n in ("x", "shift", "common")}
        output = model(
            floats["x"],
            {name: self.array(value) for name, value in inputs["routes"].items()},
            context={"shift": floats["shift"], "of_all": [convexmoe_torch.Shared(floats["common"])], "none": None},
            mask=self.array(inputs["mask"]),
            state={"scale": self.array(inputs["scale"])},
        )
        cotangents = {name: self.array(value) for name, value in inputs["cotangents"].items()}
        total = losses_of(convexmoe_torch, cotangents).compute(output).total
        total.backward()
        values = {"fused": output.fused_hidden, "total": total} | output.losses
        values |= {level.name: level.hidden for level in output.levels.values()}
        used = any("tanh" in level.kinds for level in case.levels if level.enabled)
        for name, leaf in [*floats.items(), *model.named_parameters()]:
            missing = torch.zeros_like(leaf) if name in ("shift", "common") and not used else torch.tensor(torch.nan)
            values[f"gradient of {name}"] = missing if leaf.grad is None else leaf.grad
        return {name: BACKENDS[1].numpy(value) for name, value in values.items()}

    def fused(self, model: Any, x: np.ndarray, routes: dict[str, np.ndarray], seed: int | None) -> np.ndarray:
        """The fused output; a seed switches dropout on."""
        model.train(seed is not None)
        if seed is not None:
            torch.manual_seed(seed)
        return model(self.array(x), routes).fused_hidden.detach().numpy()


ENGINES = (JaxEngine(), TorchEngine())
