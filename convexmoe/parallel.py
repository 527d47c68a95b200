"""What the parallel modules of both packages check and say alike: a mesh with the axes `data` and `expert`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .errors import fail, whole_number
from .hull.config import HullConfig
from .hull.parameters import parameter_shapes

AXES = DATA, EXPERT = ("data", "expert")
SHARDED_FORMAT = 1  # of a sharded checkpoint


def axis_sizes(data: int | None, expert: int, count: int, unit: str) -> tuple[int, int]:
    """Return the sizes of the axes `data` and `expert` of a mesh over `count` devices or processes.

    Args:
        data: size of the axis that divides the rows alone; None means all that `expert` leaves.
        expert: size of the axis that divides experts and petals as well.
        count: how many there are.
        unit: what they are, for the message: "devices" or "processes".

    Raises:
        TypeError, ValueError: a size is no whole number, or `data * expert` is not `count`.

    >>> axis_sizes(None, 2, 8, "devices")
    (4, 2)
    """
    expert = whole_number("make_mesh", "expert", expert, 1)
    if count % expert:
        fix = f"Pass expert={next(size for size in range(expert, 0, -1) if count % size == 0)}, for example."
        fail("make_mesh", "expert", f"a divisor of {count}, the number of {unit}", str(expert), fix)
    if data is None:
        return count // expert, expert
    data = whole_number("make_mesh", "data", data, 1)
    if data * expert != count:
        rule = f"data * expert = {count}, the number of {unit}"
        fail("make_mesh", "data", rule, f"{data} * {expert}", f"Pass data={count // expert}, or leave data out.")
    return data, expert


def petal_axes(config: HullConfig) -> dict[str, int]:
    """Return dotted name -> the axis of petals of every parameter of a hull that has one.

    >>> petal_axes(HullConfig(5, petals=3))
    {'readout.raw_weight': 1, 'readout.weight': 1, 'readout.bias': 0, 'shifts': 0}
    """
    more = HullConfig(**{**vars(config), "petals": 2 * config.petals})
    pairs = zip(parameter_shapes(config).items(), parameter_shapes(more).values(), strict=True)
    differing = {name: [i for i, size in enumerate(shape) if size != wide[i]] for (name, shape), wide in pairs}
    return {name: axes[0] for name, axes in differing.items() if axes}


def check_divided(expert: int, counts: dict[str, int]) -> None:
    """Check that an axis `expert` of a mesh divides the experts of a level, or the petals, at all.

    Args:
        expert: size of the axis.
        counts: what could be divided, and how many of it there are.
    """
    if expert > 1 and all(count % expert for count in counts.values()):
        got = ", ".join(f"{count} {what}" for what, count in counts.items()) or "nothing to divide"
        fix = "Make the mesh with another expert=, or with expert=1."
        fail("place", "mesh", f"an axis expert={expert} that divides experts or petals", got, fix)


def check_step(step: int, latest: int | None, folder: str) -> None:
    """Check that a sharded checkpoint is of more steps than the latest in its folder."""
    if latest is not None and step <= latest:
        fix = "Count the steps on from the checkpoint that was restored, or choose another folder."
        fail("save_sharded", "step", f"a step above {latest}, the latest in {folder!r}", str(step), fix)


def choose_step(steps: list[int], step: int | None, folder: str) -> int:
    """Return the step of the sharded checkpoint to restore: the one that is asked for, or the latest for None.

    Raises:
        FileNotFoundError: there is none in `folder`, which has those of `steps`, ascending.
    """
    step = None if step is None else whole_number("restore_sharded", "step", step, 0)
    if not steps or step not in (None, *steps):
        rule = "a folder with a whole checkpoint" if step is None else f"one with a whole checkpoint of step {step}"
        got, fix = f"{folder!r} with those of steps {steps}", "Look at latest_step(folder) first."
        fail("restore_sharded", "folder", rule, got, fix, FileNotFoundError)
    return steps[-1] if step is None else step


def check_description(stored: dict[str, Any], header: dict[str, Any], folder: str) -> None:
    """Check that the description of a sharded checkpoint is of a format that is known, and of such a model."""
    if stored.get("format") != SHARDED_FORMAT:
        fix = "Install the version of convexmoe that wrote it, or a newer one."
        rule, got = f"a checkpoint of format {SHARDED_FORMAT}", f"{folder!r} of format {stored.get('format')!r:.60}"
        fail("restore_sharded", "folder", rule, got, fix)
    check_same_model("restore_sharded", stored, header, folder)


def check_same_model(owner: str, stored: dict[str, Any], header: dict[str, Any], place: str) -> None:
    """Check that a model is of the kind and the config that a checkpoint states, and name the fields that differ."""
    for key in ("kind", "config"):
        if found := list(_differences(stored.get(key), header[key], key)):
            fix = "Build the model with the config that it was saved with."
            got = "; ".join(found[:8]) + f"; and {len(found) - 8} more" * (len(found) > 8)
            fail(owner, "model", f"the {key} of {place!r}", got, fix)


def _differences(stored: Any, own: Any, name: str) -> Iterator[str]:
    """Yield in words what differs between two values of JSON, by dotted names."""
    if isinstance(stored, dict) and isinstance(own, dict):
        for key in sorted(stored.keys() | own.keys()):
            yield from _differences(stored.get(key), own.get(key), key if name == "config" else f"{name}.{key}")
    elif stored != own:
        yield f"{name}={own!r:.60}, where that has {stored!r:.60}"
