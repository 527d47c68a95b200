"""Models in the neutral file: what is written, and what is read but for the making of the framework's own arrays."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import fail
from ..hierarchy import FUSIONS, USER, CELMoEConfig
from ..hull.config import HullConfig
from ..hull.parameters import nest
from .format import Arrays, check_content, own_copy, plain_notes, read, write_sealed
from .optimizer import MOMENTS, OptimizerState, check_state
from .schema import KINDS, OPTIMIZER, PREFIX, schema_of

Path = str | os.PathLike[str]
Notes = dict[str, Any]


class Package:
    """How the models of a package are saved and loaded.

    Args:
        layers: its `files.layers`. `MODELS` are its `VectorHull` and `HierarchicalCELMoE`; `neutral_arrays` returns a
            copy in numpy of every parameter of a model by neutral name, `from_numpy` such an array in the framework,
            `recipes_of` what `describe_parts` says of a hierarchy; `build` and `fill` make one, and set its arrays.
        optimizers: its `files.optimizer`. `KINDS` are the classes of arrays that a state may have; `optimizer_state`
            returns a copy of a state, `restore` the optimizer with a saved one, `to_numpy` and `moment_of` a moment in
            numpy, and one from numpy.
    """

    def __init__(self, layers: Any, optimizers: Any) -> None:
        self._layers, self._optimizers = layers, optimizers

    def save(
        self, model: Any, path: Path, *, notes: Notes | None = None, optimizer: Any = None, step: int | None = None
    ) -> None:
        """Write a hull or a hierarchy to a neutral file. An existing file is replaced whole or not at all.

        Args:
            model: the model; in PyTorch also inside a compiled module or `DistributedDataParallel`. A hierarchy's own
                layers need a rule each (`names.RULES`).
            path: the file; its folder must exist.
            notes: a dict of names to text, numbers of Python, bool, None, and lists and dicts of them, to be read by
                `read_notes` exactly as they are, for example the names of the columns.
            optimizer: what trains it, to be read by `load_optimizer` in either package: of PyTorch Adam, AdamW or SGD
                with momentum, of optax the state of one of them, or an `OptimizerState`.
            step: the steps taken, where the optimizer does not count them (SGD).

        Raises:
            FileNotFoundError: the folder does not exist.
            OSError: it cannot be written to.
            TypeError, ValueError: a layer of a hierarchy has no rule, the optimizer is another, or the notes would come
                back changed.

        >>> import tempfile
        >>> from convexmoe_torch import VectorHull, load, save
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(VectorHull(3, petals=4), f"{folder}/hull.safetensors")
        ...     load(f"{folder}/hull.safetensors").config.petals
        4
        """
        model = self._layers.unwrap(model)
        header, arrays = self.content_of(model)
        if optimizer is not None and not isinstance(optimizer, OptimizerState):
            optimizer = self._optimizers.optimizer_state(optimizer, model, step=step)
        self.write(path, header, arrays, notes, optimizer)

    def write(
        self, path: Path, header: dict[str, Any], arrays: Arrays, notes: Notes | None, state: OptimizerState | None
    ) -> None:
        """Write what `content_of` returned, as `save` does."""
        header |= {"schema": schema_of(header["kind"], header["config"]), "notes": plain_notes(notes)}
        if state is not None:
            parameters = {name.removeprefix(PREFIX): value for name, value in arrays.items()}
            check_state(state, parameters, self._optimizers.KINDS)
            header["optimizer"] = {"rule": state.rule, "step": int(state.step)}
            for moment, values in state.moments.items():
                for name, value in values.items():
                    arrays[f"{OPTIMIZER}{moment}/{name}"] = own_copy(self._optimizers.to_numpy(value))
        check_content(os.fsdecode(path), header, arrays, "save")
        write_sealed(path, header, arrays)

    def content_of(self, model: Any) -> tuple[dict[str, Any], Arrays]:
        """Return kind and config of a model, and its arrays as the file names them."""
        if not isinstance(model, self._layers.MODELS):
            rule, fix = f"one of {list(KINDS)}", "Pass such a model; of a folded hull, the one that it was folded from."
            fail("save", "model", rule, type(model).__name__, fix, TypeError)
        if hasattr(model, "saved_by"):
            fix = f"Call {model.saved_by}(model, path), on all of them."
            fail("save", "model", "a model that is whole on this process", "one divided over processes", fix, TypeError)
        config, kind = json.loads(model.config.to_json()), KINDS[isinstance(model, self._layers.MODELS[1])]
        if kind == KINDS[1]:
            config = {"hierarchy": config, **self._layers.recipes_of(model)}
        header = {"kind": kind, "config": config}
        return header, {PREFIX + name: value for name, value in self._layers.neutral_arrays(model).items()}

    def load(self, path: Path, *, expert_factory: Any = None, fusion_module: Any = None) -> Any:
        """Return the model of a neutral file, in the dtype it was saved in.

        Args:
            path: the file.
            expert_factory: of a hierarchy with experts of your own: what it was built with. Ready experts need none.
            fusion_module: of a hierarchy with a fusion of your own: such a module.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no neutral file, is damaged, of a newer schema, or does not fit its config; everything
                that is missing, unexpected, mis-shaped or mis-typed is listed. JAX has its dtype switched off.
        """
        header, arrays = read(path, PREFIX)
        named = {key.removeprefix(PREFIX): self._layers.from_numpy(arrays.pop(key), path) for key in list(arrays)}
        recipes = header["config"]
        if header["kind"] == "VectorHull":
            return self._layers.MODELS[0].from_params(HullConfig.from_json(json.dumps(recipes)), nest(named))
        config = CELMoEConfig.from_json(json.dumps(recipes["hierarchy"]))
        model = self._layers.build(config, recipes, expert_factory, fusion_module)
        self._layers.fill(model, named)
        return model

    def load_optimizer(self, path: Path, optimizer: Any, model: Any) -> Any:
        """Return `optimizer` with the moments and the step that a neutral file holds, whichever package wrote it.

        Args:
            path: the file.
            optimizer: the one that goes on; its rates, decays and schedule are its own. In PyTorch an optimizer of the
                model's parameters, changed in place; in JAX `init(params)` of optax, or `opt_state` of `nnx.Optimizer`.
            model: the model of the file.

        Raises:
            ValueError: as `load`; the file holds no optimizer; its names or shapes are not the model's.
            TypeError: its rule is not that of `optimizer`.
        """
        state = self.read_optimizer(path)
        if state is None:
            fix = "Write it with save(model, path, optimizer=...)."
            fail("load_optimizer", "path", "a file with an optimizer", repr(os.fspath(path)), fix)
        return self._optimizers.restore(optimizer, model, state)

    def read_optimizer(self, path: Path) -> OptimizerState | None:
        """Return the state of the optimizer in a neutral file, None where it holds none. Errors as in `load`."""
        header, arrays = read(path, OPTIMIZER)
        optimizer = header.get("optimizer")
        if optimizer is None:
            return None
        moments: dict[str, dict[str, Any]] = {moment: {} for moment in MOMENTS[optimizer["rule"]]}
        for key in list(arrays):
            moment, _, name = key.removeprefix(OPTIMIZER).partition("/")
            moments[moment][name] = self._optimizers.moment_of(arrays.pop(key))
        return OptimizerState(optimizer["rule"], optimizer["step"], moments)


def read_notes(path: Path) -> dict[str, Any]:
    """Return the notes that `save` wrote. Errors as in `load`."""
    return read(path, None)[0]["notes"]


def describe_parts(experts: dict[str, Any], fusion: Any, config: CELMoEConfig, ours: dict[str, type]) -> dict[str, Any]:
    """Return what is needed to build a hierarchy's experts and fusion again, as JSON can hold it.

    Ready experts state their sizes. A user's own expert or fusion states only that it is one, as does a fusion of ours
    that the config does not describe.

    Args:
        experts: "level.expert" -> module.
        fusion: the module, or None.
        config: of the hierarchy.
        ours: kind -> class, of the ready experts and fusions of the package.
    """
    kind = _kind_of(fusion, ours)
    positions = getattr(fusion, "max_positions", config.fusion_max_positions)
    if fusion is None:
        kind = None
    elif kind != FUSIONS[config.fusion_type] or positions != config.fusion_max_positions:
        kind = USER
    return {"experts": {name: _recipe(expert, ours) for name, expert in experts.items()}, "fusion": kind}


def _kind_of(module: Any, ours: dict[str, type]) -> str | None:
    """Return the kind of a module of exactly one of our classes, `USER` for any other."""
    return next((kind for kind, known in ours.items() if type(module) is known), USER)


def _recipe(expert: Any, ours: dict[str, type]) -> dict[str, Any]:
    kind = _kind_of(expert, ours)
    if kind == "LinearExpert":
        return {"kind": kind, "sizes": list(expert.weight.shape)}
    if kind == "MLPExpert":
        return {"kind": kind, "sizes": [*expert.weight_1.shape, expert.weight_2.shape[1]]}
    if kind == "HullExpert":
        return {"kind": kind, "config": json.loads(expert.hull.config.to_json())}
    return {"kind": USER}


def check_own_parts(config: CELMoEConfig, recipes: dict[str, Any], expert_factory: Any, fusion_module: Any) -> None:
    """Check that there is a factory, or a module, for the experts and the fusion that are a user's own."""
    of_users = [name for name, recipe in recipes["experts"].items() if recipe["kind"] == USER]
    if of_users and expert_factory is None:
        fix = "Pass the expert_factory that the model was built with."
        fail("load", "expert_factory", f"a factory for the experts {of_users}", "None", fix)
    if recipes["fusion"] == USER and fusion_module is None:
        fix = "Pass the fusion_module that the model was built with."
        rule = f"the module of a fusion that is not {FUSIONS[config.fusion_type]}"
        fail("load", "fusion_module", rule, "None", fix)


def make_expert(
    recipe: dict[str, Any], experts: Mapping[str, Callable[..., Any]], hull: Callable[[HullConfig], Any]
) -> Any:
    """Return a ready expert by its recipe.

    Args:
        recipe: of a ready expert.
        experts: kind -> the expert of such sizes, and "HullExpert" -> that of a hull.
        hull: the hull of a config.
    """
    if recipe["kind"] == "HullExpert":
        return experts["HullExpert"](hull(HullConfig.from_json(json.dumps(recipe["config"]))))
    return experts[recipe["kind"]](*recipe["sizes"])
