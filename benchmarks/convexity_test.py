"""How often `convexity_test` gives p <= 0.05: on convex truths, where that is an error, and on others, where it is not.

    python benchmarks/convexity_test.py                    # the tables of docs/pages/numbers.md, about half an hour
    python benchmarks/convexity_test.py --sizes 100x2 --draws 20

Each draw has its own errors, each tenth of them its own rows, uniform in [-1.7, 1.7]^D. Noise is in deviations of the
truth; of a plane it has no say, and there are four kinds of it.
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


def noise(kind: str, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return errors of deviation 1, `[N]`."""
    if kind == "normal":
        return rng.normal(size=len(x))
    if kind == "Student, 3":
        return rng.standard_t(3, len(x)) / np.sqrt(3.0)
    if kind == "exponential":
        return rng.exponential(size=len(x)) - 1.0
    size = np.exp(0.7 * x[:, 0])  # grows elevenfold
    return size / np.sqrt(np.mean(size**2)) * rng.normal(size=len(x))


def rejections(rows: int, dims: int, cases: list, draws: int, seed: int = 0, level: float = 0.05) -> list[float]:
    """Return the share of p-values at or below the level, for each case: truth, kind of noise, its deviation.

    Args:
        rows, dims: the size of a table; cases: see above; draws: of tables, ten to one draw of x.
    """
    rng, found = np.random.default_rng([seed, rows, dims]), np.zeros(len(cases))
    of_x = max(1, draws // 10)
    for _ in range(of_x):
        x = rng.uniform(-1.7, 1.7, (rows, dims))
        z = (x - x.mean(axis=0)) / x.std(axis=0)
        weights, *_ = contrasts(z, np.zeros(rows, int), rng)
        for k, (truth, kind, size) in enumerate(cases):
            for _ in range(draws // of_x):
                f = truth(x)
                y = (f - f.mean()) / (f.std() or 1.0) + size * noise(kind, x, rng)
                if len(weights):
                    found[k] += bootstrap(weights, z, (y - y.mean()) / y.std(), 199, rng)[0] <= level
    return (found / (of_x * (draws // of_x))).tolist()


def show(title: str, names: list[str], sizes: list[tuple[int, int]], cases: list, draws: int) -> None:
    """Print a table of per cents, a column a size."""
    columns = [rejections(rows, dims, cases, draws) for rows, dims in sizes]
    print(f"\n{title}, per cent of {draws} tables\n")
    print(f"| rows x inputs | {' | '.join(f'{rows} x {dims}' for rows, dims in sizes)} |")
    print(f"| --- |{' ---: |' * len(sizes)}")
    for name, *shares in zip(names, *columns, strict=True):
        print(f"| {name} | {' | '.join(f'{100 * share:.3g}' for share in shares)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = ["50x1", "100x1", "100x2", "100x5", "300x1", "300x2", "300x5", "1000x5"]
    parser.add_argument("--sizes", nargs="+", default=sizes)
    parser.add_argument("--draws", type=int, default=200)
    options = parser.parse_args()
    sizes = [tuple(map(int, size.split("x"))) for size in options.sizes]
    kinds = ["normal", "Student, 3", "exponential", "growing"]
    plane = [(lambda x: np.zeros(len(x)), kind, 1.0) for kind in kinds]
    show("A plane, by the kind of noise", kinds, sizes, plane, options.draws)
    for title, truths in (("Convex", CONVEX), ("Not convex", OTHERS)):
        heads = [f"{name}, {size:g}" for name in truths for size in (0.05, 0.3, 1.0)]
        cases = [(truth, "normal", size) for truth in truths.values() for size in (0.05, 0.3, 1.0)]
        show(f"{title}, by the noise", heads, sizes, cases, options.draws // 4)


if __name__ == "__main__":
    main()
