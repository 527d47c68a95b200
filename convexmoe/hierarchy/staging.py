"""Which experts, and whether the fusion, the names of staged training stand for."""

from __future__ import annotations

from ..errors import fail
from .config import CELMoEConfig


def select_parts(
    owner: str, config: CELMoEConfig, names: tuple[str, ...], has_fusion: bool
) -> tuple[dict[str, set[int]], bool]:
    """Return level -> indices of the named experts, and whether the fusion is named; a level names all its experts.

    Args:
        owner: who asks, for the message.
        config: the hierarchy.
        names: "level", "level.expert", or "fusion" (where no level is called so).
        has_fusion: whether the hierarchy has one.

    Raises:
        ValueError: no name, or an unknown one.

    >>> from .config import HierarchyLevelConfig, ExpertConfig
    >>> level = HierarchyLevelConfig("family", [ExpertConfig("slavic"), ExpertConfig("romance")])
    >>> select_parts("freeze", CELMoEConfig(8, [level]), ("family.romance", "fusion"), True)
    ({'family': {1}}, True)
    """
    if not names:
        fail(owner, "names", "a level, an expert or 'fusion'", "none", "Name what is to be held fast.")
    levels = {level.name: level.expert_names for level in config.enabled_levels}
    experts: dict[str, set[int]] = {}
    fusion, fix = False, "Correct the name."
    for name in names:
        level, dot, expert = str(name).partition(".")
        if level in levels:
            members = levels[level]
            if dot and expert not in members:
                fail(owner, "names", f"level.expert, experts among {list(members)}", repr(name), fix)
            named = {members.index(expert)} if dot else set(range(len(members)))
            experts.setdefault(level, set()).update(named)
        elif name == "fusion" and has_fusion:
            fusion = True
        else:
            known = [*levels, *["fusion"] * has_fusion]
            fail(owner, "names", f"a level or level.expert, levels among {known}", repr(name), fix)
    return experts, fusion
