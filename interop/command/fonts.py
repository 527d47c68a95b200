"""Names in a picture: drawn in fonts that have their letters, and numbered where none is installed."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def choose_fonts(names: Iterable[str]) -> tuple[list[str], set[str]]:
    """Return the families of fonts to draw names with, and the letters that none of them can draw.

    Letters that are written from the right count as such where matplotlib cannot order and join them.
    """
    from matplotlib import font_manager, ft2font, rcParams

    get, letters = font_manager.get_font, {letter for name in names for letter in name}
    plain = get(font_manager.findfont(font_manager.FontProperties())).get_charmap()
    mixed = not hasattr(ft2font, "__libraqm_version__")
    turned = {letter for letter in letters if mixed and unicodedata.bidirectional(letter) in ("R", "AL")}
    families, missing = list(rcParams["font.family"]), {x for x in letters - turned if ord(x) not in plain}
    for entry in sorted(font_manager.fontManager.ttflist, key=lambda entry: (entry.name, entry.fname)):
        usual = entry.style == "normal" and entry.weight in (400, "normal", "regular") and entry.stretch == "normal"
        if missing and usual and "Last Resort" not in entry.name:  # which has a box for each letter
            try:
                font = get(font_manager.findfont(entry.name))
                drawn = {letter for letter in missing if ord(letter) in font.get_charmap()}
                for letter in drawn:
                    font.load_char(ord(letter))
            except (OSError, RuntimeError):  # a damaged font, or one of colored pictures
                continue
            families, missing = families + [entry.name] * bool(drawn), missing - drawn
    return families, missing | turned
