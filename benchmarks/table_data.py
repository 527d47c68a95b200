"""Ten tables that Python packages ship, for `tables.py`: chosen before any result was seen, and all of them kept."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Rows = tuple[np.ndarray, np.ndarray]  # x [N, D] and y [N]


@dataclass(frozen=True)
class Table:
    """A table to regress on.

    Args:
        name: what a line of the report begins with.
        package: what has to be installed to read it; "" for a file.
        source: where its numbers come from, and on what terms.
        read: returns x `[N, D]` and y `[N]`, float64.
    """

    name: str
    package: str
    source: str
    read: Callable[[], Rows]


def numbers(frame: Any, target: Any, names: Iterable[str]) -> Rows:
    """Return named columns of a data frame as x, and the target as y."""
    return np.asarray(frame[list(names)], np.float64), np.asarray(target, np.float64)


def of_statsmodels(name: str) -> Any:
    """Return a data frame of statsmodels."""
    from statsmodels import datasets

    return getattr(datasets, name).load_pandas().data


def of_plotnine(name: str) -> Any:
    """Return a data frame of plotnine."""
    from plotnine import data

    return getattr(data, name)


def of_scikit_learn(name: str) -> Any:
    """Return a data frame of scikit-learn."""
    from sklearn import datasets

    return getattr(datasets, f"load_{name}")(as_frame=True).data


def scotland() -> Rows:
    """Return the share of yes in 32 council districts, 1997."""
    frame = of_statsmodels("scotland")
    return numbers(frame, frame["YES"], frame.columns.drop("YES"))


def macrodata() -> Rows:
    """Return real investment in the United States, by quarter: columns that all grow together."""
    frame = of_statsmodels("macrodata")
    names = ["realgdp", "realcons", "realgovt", "realdpi", "cpi", "m1", "tbilrate", "unemp", "pop", "infl"]
    return numbers(frame, frame["realinv"], names)


def star98() -> Rows:
    """Return the share of pupils above the median in mathematics; of 20 columns eight are products of others."""
    frame = of_statsmodels("star98")
    above, below = frame["NABOVE"], frame["NBELOW"]
    return numbers(frame, above / (above + below), frame.columns.drop(["NABOVE", "NBELOW"]))


def randhie() -> Rows:
    """Return visits to a doctor in a year: counts with many zeros and a heavy tail."""
    frame = of_statsmodels("randhie")
    return numbers(frame, frame["mdvis"], frame.columns.drop("mdvis"))


def wine() -> Rows:
    """Return the alcohol of 178 wines from their chemistry."""
    frame = of_scikit_learn("wine")
    return numbers(frame, frame["alcohol"], frame.columns.drop("alcohol"))


def breast_cancer() -> Rows:
    """Return the area of the largest nuclei from means and standard errors of all nuclei."""
    frame = of_scikit_learn("breast_cancer")
    return numbers(frame, frame["worst area"], [name for name in frame.columns if not name.startswith("worst")])


def midwest() -> Rows:
    """Return the per cent of people in poverty in 437 counties; sizes of counties are heavy-tailed."""
    frame = of_plotnine("midwest")
    shares = [f"perc{group}" for group in ("white", "black", "amerindan", "asian", "other", "ollege", "prof")]
    names = ["area", "poptotal", "popdensity", *shares, "perchsd", "inmetro"]
    return numbers(frame, frame["percbelowpoverty"], names)


def txhousing() -> Rows:
    """Return the log of the median price of houses by city and month; rows with a gap are left out."""
    names = ["year", "month", "sales", "listings", "inventory"]
    frame = of_plotnine("txhousing").dropna(subset=[*names, "median"])
    return numbers(frame, np.log(frame["median"]), names)


def diamonds() -> Rows:
    """Return prices of diamonds; cut, color and clarity are ranks, in the order that plotnine gives."""
    frame = of_plotnine("diamonds").copy()
    for name in ("cut", "color", "clarity"):
        frame[name] = frame[name].cat.codes
    return numbers(frame, frame["price"], frame.columns.drop("price"))


def seattle_weather() -> Rows:
    """Return the day's highest temperature from rain, lowest temperature and wind."""
    from vega_datasets import data

    frame = data.seattle_weather()
    return numbers(frame, frame["temp_max"], ["precipitation", "temp_min", "wind"])


BY_PERMISSION = "Gill, Generalized Linear Models, 2001; in statsmodels by permission of the author"
TABLES = (
    Table("scotland", "statsmodels", BY_PERMISSION, scotland),
    Table("wine", "sklearn", "UCI, Forina et al.; CC BY 4.0", wine),
    Table("macrodata", "statsmodels", "Federal Reserve Bank of St. Louis; public domain", macrodata),
    Table("star98", "statsmodels", BY_PERMISSION, star98),
    Table("midwest", "plotnine", "US census, through ggplot2; MIT", midwest),
    Table("breast_cancer", "sklearn", "UCI, Wolberg et al.; CC BY 4.0", breast_cancer),
    Table("seattle_weather", "vega_datasets", "NOAA; public domain", seattle_weather),
    Table("txhousing", "plotnine", "Real estate center of Texas A&M, through ggplot2; MIT", txhousing),
    Table("randhie", "statsmodels", "RAND Health Insurance Experiment; public domain", randhie),
    Table("diamonds", "plotnine", "prices in US dollars, through ggplot2; MIT", diamonds),
)


def of_file(path: Path) -> Rows:
    """Return the arrays `x` and `y` of an .npz file."""
    with np.load(path) as arrays:
        return arrays["x"].astype(np.float64), arrays["y"].astype(np.float64)


def of_folder(folder: Path) -> tuple[Table, ...]:
    """Return a table for each .npz file of a folder, by name."""
    return tuple(Table(path.stem, "", str(path), partial(of_file, path)) for path in sorted(folder.glob("*.npz")))


def need(packages: Iterable[str]) -> None:
    """Exit with one line where a package is not installed."""
    missing = sorted(name for name in set(packages) - {""} if importlib.util.find_spec(name) is None)
    if missing:
        fix = 'pip install -c constraints.txt -e ".[tables]"'
        if "lpcf" in missing:
            fix = f'{fix[:-2]},peers]"; pip install --no-deps lpcf==0.1.1 jax-sysid==1.1.0'
        raise SystemExit(f"tables.py needs {', '.join(missing)}: {fix}")
