"""Draw docs/pages/images/group_map.png: the third panel of the report of `convexmoe fit` on the embedded table.

python docs/group_map.py [OUT.png]
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.image
import numpy as np
from PIL import Image

PLACE = Path(__file__).parent / "pages" / "images" / "group_map.png"
GAP = 10  # blank columns between two panels at least; within a panel, between labels and ticks, there are fewer
EDGE = 6


def third_panel(picture: np.ndarray) -> np.ndarray:
    """The part of a picture `[height, width, channels]` right of its second gap of blank columns.

    >>> row = np.ones((1, 60, 3)); row[:, [5, 8, 20, 40, 55]] = 0
    >>> third_panel(row).shape  # from column 40, and an edge; the gap after it belongs to the panel
    (1, 26, 3)
    """
    inked = np.flatnonzero((picture[..., :3] < 1).any(axis=(0, 2)))
    second = np.flatnonzero(np.diff(inked) > GAP)[1]
    return picture[:, inked[second + 1] - EDGE :]


def main(path: Path) -> None:
    """Fit, and keep the panel."""
    with tempfile.TemporaryDirectory() as folder:
        fit = "from interop.cli import main; main()"
        subprocess.run([sys.executable, "-c", fit, "fit", "--out", folder], check=True)
        picture = matplotlib.image.imread(Path(folder) / "report.png")
    path.parent.mkdir(exist_ok=True)
    panel = Image.fromarray((255 * third_panel(picture)).round().astype(np.uint8)).convert("RGB")
    panel.quantize(256).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PLACE)
