"""What the parallel modules of both packages check and say alike: a mesh with the axes `data` and `expert`."""

from __future__ import annotations

from .errors import fail, whole_number

AXES = DATA, EXPERT = ("data", "expert")


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
