"""How often `convexity_test` gives p <= 0.05: on convex truths, where that is an error, and on others, where it is not.

    python benchmarks/convexity_test.py                    # as in docs/pages/numbers.md, which has the draws and sizes
    python benchmarks/convexity_test.py --sizes 100x2 --draws 20 --tables tails

Each draw has its own errors, each tenth of them its own rows: uniform in [-1.7, 1.7]^D, but for the tables of planes
over inputs with long tails. Noise is in deviations of the truth; of a plane it has no say, and there are kinds of it.
"""

import argparse

import numpy as np

from convexmoe.training.contrasts import bootstrap, contrasts

CONVEX = {
    "|x_1|": lambda x: np.abs(x[:, 0]),
    "quadratic": lambda x: np.sum(x**2, axis=1),
    "sum of exp": lambda x: np.exp(x).sum(axis=1),
    "maximum of planes": lambda x: np.max(np.column_stack([x, -x.sum(axis=1)]), axis=1),
}
OTHERS = {
    "sin 2 x_1": lambda x: np.sin(2 * x[:, 0]),
    "minus quadratic": lambda x: -np.sum(x**2, axis=1),
    "square root": lambda x: np.sqrt(1.75 * x.shape[1] + x.sum(axis=1)),
    "saddle": lambda x: x[:, 0] ** 2 - x[:, -1] ** 2 if x.shape[1] > 1 else x[:, 0] ** 3,
    "x_1 x_2": lambda x: x[:, 0] * x[:, 1] if x.shape[1] > 1 else x[:, 0] * np.abs(x[:, 0]),
    "step": lambda x: 1.0 * (x[:, 0] > 0.3),
}


INPUTS = {
    "uniform": lambda rng, shape: rng.uniform(-1.7, 1.7, shape),
    "normal": lambda rng, shape: rng.normal(size=shape),
    "exponential": lambda rng, shape: rng.exponential(size=shape),
    "lognormal, 0.7": lambda rng, shape: np.exp(0.7 * rng.normal(size=shape)),
    "lognormal, 1.2": lambda rng, shape: np.exp(1.2 * rng.normal(size=shape)),
}
KINDS = ("normal", "Student, 3", "exponential", "minus exponential", "growing")
TAILS = {
    "normal": ("normal", "Student, 3"),
    "exponential": ("as x_1",),
    "lognormal, 0.7": ("normal", "as root x_1", "as x_1"),
    "lognormal, 1.2": ("normal", "Student, 3", "as root x_1", "as x_1"),
}


def noise(kind: str, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return errors of deviation 1, `[N]`; those "as" x_1 need x_1 > 0."""
    if kind == "normal":
        return rng.normal(size=len(x))
    if kind == "Student, 3":
        return rng.standard_t(3, len(x)) / np.sqrt(3.0)
    if kind.endswith("exponential"):
        return (rng.exponential(size=len(x)) - 1.0) * (-1.0 if kind.startswith("minus") else 1.0)
    sizes = {"growing": lambda a: np.exp(0.7 * a), "as x_1": np.array, "as root x_1": np.sqrt}  # the first elevenfold
    size = sizes[kind](x[:, 0])
    return size / np.sqrt(np.mean(size**2)) * rng.normal(size=len(x))


def rejections(
    rows: int, dims: int, cases: list, draws: int, seed: int = 0, level: float = 0.05, inputs: str = "uniform"
) -> list[float]:
    """Return the share of p-values at or below the level, for each case: truth, kind of noise, its deviation.

    Args:
        rows, dims, inputs: the size of a table, and the kind of x; cases: see above; draws: of tables, ten a draw of x.
    """
    rng, found = np.random.default_rng([seed, rows, dims]), np.zeros(len(cases))
    of_x = max(1, draws // 10)
    for _ in range(of_x):
        x = INPUTS[inputs](rng, (rows, dims))
        z = (x - x.mean(axis=0)) / x.std(axis=0)
        weights, *_ = contrasts(z, np.zeros(rows, int), rng)
        for k, (truth, kind, size) in enumerate(cases):
            for _ in range(draws // of_x):
                f = truth(x)
                y = (f - f.mean()) / (f.std() or 1.0) + size * noise(kind, x, rng)
                if len(weights):
                    found[k] += bootstrap(weights, z, (y - y.mean()) / y.std(), 199, rng)[0] <= level
    return (found / (of_x * (draws // of_x))).tolist()


def plane(x: np.ndarray) -> np.ndarray:
    """Return a plane, `[N]`."""
    return np.zeros(len(x))


def show(title: str, rows: dict[str, list[tuple[str, tuple]]], sizes: list[tuple[int, int]], draws: int) -> None:
    """Print a table of per cents, a column a size; rows: of each kind of x the names and the cases."""
    print(f"\n{title}, per cent of {draws} tables\n")
    print(f"| rows x inputs | {' | '.join(f'{n} x {dims}' for n, dims in sizes)} |\n| --- |{' ---: |' * len(sizes)}")
    for inputs, named in rows.items():
        cases = [case for _, case in named]
        columns = [rejections(n, dims, cases, draws, inputs=inputs) for n, dims in sizes]
        for (name, _), *shares in zip(named, *columns, strict=True):
            print(f"| {name} | {' | '.join(f'{100 * share:.3g}' for share in shares)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = ["50x1", "100x1", "100x2", "100x5", "300x1", "300x2", "300x5", "1000x5"]
    tables = ["planes", "tails", "convex", "others"]
    parser.add_argument("--sizes", nargs="+", default=sizes)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--tables", nargs="+", default=tables, choices=tables)
    options = parser.parse_args()
    sizes = [tuple(map(int, size.split("x"))) for size in options.sizes]
    if "planes" in options.tables:
        rows = {"uniform": [(kind, (plane, kind, 1.0)) for kind in KINDS]}
        show("A plane, uniform x, by the kind of noise", rows, sizes, options.draws)
    if "tails" in options.tables:
        rows = {x: [(f"{x} x; noise {kind}", (plane, kind, 1.0)) for kind in kinds] for x, kinds in TAILS.items()}
        show("A plane, by the kind of x", rows, sizes, options.draws)
    for table, title, truths in (("convex", "Convex", CONVEX), ("others", "Not convex", OTHERS)):
        if table in options.tables:
            cases = [(name, truth, size) for name, truth in truths.items() for size in (0.05, 0.3, 1.0)]
            rows = {"uniform": [(f"{name}, {size:g}", (truth, "normal", size)) for name, truth, size in cases]}
            show(f"{title}, by the noise", rows, sizes, options.draws // 4)


if __name__ == "__main__":
    main()
