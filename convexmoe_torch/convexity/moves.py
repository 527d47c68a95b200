"""Operations that move elements and change none: facts and bounds move along."""

from __future__ import annotations

import numpy as np
import torch

from convexmoe.convexity import Inputs, Operation, Rule, Value, Walk, facts, moves

from .lowering.moves import INDEXED, PLACED, fill_template, number_elements


def _move_to_known_places(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """Places that were known when the program was written; at place 0 there is a known number."""
    index = operation.params["places"].array
    elements = moves.concatenate_flat(inputs).take(index - 1)
    return [facts.merge(index > 0, elements, facts.literal(operation.params["fill"]).broadcast(index.shape))]


def _move_by_index(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """Places that are values of the program.

    Those that do not depend on the chosen input, but are not known, may be any; places that depend on it leave bounds
    only.
    """
    count = operation.params["moved"]
    data, at = inputs[:count], inputs[count:]
    shape = walk.graph.shapes[operation.outputs[0]]
    if not all(value.known.all() for value in at):
        return [_at_unknown_places(operation, data, at, shape)]
    dtypes = [getattr(torch, walk.graph.dtypes[number]) for number in operation.inputs[count:]]
    places = [torch.from_numpy(value.lower.copy()).to(dtype) for value, dtype in zip(at, dtypes, strict=True)]
    tensors = [*number_elements([value.shape for value in data]), *places]
    target = operation.params["target"]
    given = {name: fill_template(value, tensors) for name, value in operation.params["template"]}
    for argument in target._schema.arguments:
        if str(argument.type) == "number" and isinstance(given[argument.name], torch.Tensor):
            given[argument.name] = given[argument.name].item()
    index = target(**given).numpy()
    if index.shape != shape:
        raise ValueError(f"places {index.shape} for a value {shape}")
    written = index > data[0].facts.size
    if count > 1 and data[1].facts.size > 1:
        counts = np.unique(index[written]).size, int(written.sum())
        if counts != (data[1].facts.size,) * 2:  # two elements for one place, say: either may stay
            return [_at_unknown_places(operation, data, at, shape)]
    return [moves.concatenate_flat(data).take(index - 1)]


def _at_unknown_places(operation: Operation, data: Inputs, at: Inputs, shape: tuple[int, ...]) -> Value:
    """Return what holds wherever the elements are taken from, or put."""
    if any(value.facts.size == 0 for value in data):
        return facts.nothing(shape)
    target, *sources = data
    cases = [moves.weakest_element(value).broadcast(shape) for value in sources]
    target_stays = sources and target.shape == shape
    cases.append(target if target_stays else moves.weakest_element(target).broadcast(shape))
    return moves.unknown_places(cases, at)


MOVING_RULES: dict[str, Rule] = {
    "reshape": moves.moving_rule(lambda part, params: part.reshape(params["new_shape"])),
    "permute": moves.moving_rule(lambda part, params: np.transpose(part, params["dims"])),
    "expand": moves.moving_rule(lambda part, params: np.broadcast_to(part, params["new_shape"])),
    **dict.fromkeys(PLACED, Rule("moved", _move_to_known_places)),
    **dict.fromkeys(INDEXED, Rule("moved", _move_by_index)),
}
