"""The quality benchmark compares what it says: the published tasks, one loop for all, peers true to their names."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
import quality
import quality_digits
import quality_grammar
import quality_scores
import quality_tasks
import quality_unseen
import regressors
from quality_scores import CHOSEN, FITTED, HULL, PLANES, Job, Score, Standard

from convexmoe_jax import HullConfig, find_violation
from convexmoe_jax.training.engine import HullFunction, train

pytestmark = pytest.mark.usefixtures("quick_compilation")

QUADRATIC = quality_tasks.quadratic_50()


def test_the_quadratic_is_the_published_one():
    """Predicting the mean errs by 4.64 there."""
    assert QUADRATIC.x.shape == (5000, 50) and np.abs(QUADRATIC.x).max() <= 1
    mean = np.mean((QUADRATIC.y.mean() - QUADRATIC.y_test) ** 2)
    assert round(mean, 2) == quality.PUBLISHED["quadratic"]["predicting the mean"]
    noise = QUADRATIC.y[:, 0] - np.sum(QUADRATIC.x**2, axis=1)
    assert abs(noise.std() - 1) < 0.05
    assert np.array_equal(QUADRATIC.y_test[:, 0], np.sum(QUADRATIC.x_test**2, axis=1))


def test_the_small_task_is_as_hard_as_the_published_one():
    """Linear regression errs by 0.310 there."""
    task = quality_tasks.small()
    design = np.column_stack([task.x, np.ones(len(task.x))])
    plane = np.linalg.lstsq(design, task.y, rcond=None)[0]
    predicted = np.column_stack([task.x_test, np.ones(len(task.x_test))]) @ plane
    assert abs(np.mean((predicted - task.y_test) ** 2) - quality.PUBLISHED["small"]["linear regression"]) < 0.05


@pytest.mark.parametrize("family", quality_tasks.FAMILIES)
def test_the_families_are_convex_and_their_noise_is_in_units_of_their_deviation(family):
    task = quality_tasks.suite_task(family, 3, 0.1, draw=0, seed=0)
    exact = quality_tasks.suite_task(family, 3, 0.0, draw=0, seed=0)
    assert np.allclose((task.y - exact.y).std(axis=0) / task.y_test.std(axis=0), 0.1, rtol=0.1)
    function = quality_tasks.FAMILIES[family](np.random.default_rng(1), 3)
    ends = np.random.default_rng(2).uniform(-1, 1, (2, 999, 3))
    first, second, middle = (quality_tasks.columns(function(x)) for x in (*ends, ends.mean(axis=0)))
    assert (middle <= (first + second) / 2 + 1e-12).all()


def test_the_loop_is_that_of_the_package():
    tasks = [quality_tasks.suite_task("quadratic", 3, 0.1, 0, seed, rows=200) for seed in range(2)]
    config = HullConfig(3, 4, 1, hidden_dim=7, temperature="learned")
    network, rows = networks.hull_network(config), Standard.of(tasks).rows
    draws = [network.init(jax.random.key(seed)) for seed in range(2)]
    _, losses = networks.train(network, draws, rows, 80, 31, [0.03, 0.02], [0, 1])
    for seed in range(2):
        x, y, x_held, y_held = (part[seed] for part in rows)
        options = {"steps": 80, "batch_size": 31, "learning_rate": [0.03, 0.02][seed], "seed": seed}
        own = train(HullFunction(config), draws[seed], x, y, validation=(x_held, y_held), **options)
        assert np.isclose(min(own.history.validation_loss), losses[seed], rtol=1e-4)
    # control: another rate takes another run
    other = networks.train(network, draws, rows, 80, 31, [0.02, 0.03], [0, 1])[1]
    assert not np.isclose(other, losses, rtol=1e-3).any()


@pytest.mark.parametrize(
    ("make", "convex"),
    [
        (networks.icnn, True),
        pytest.param(networks.lse_network, True, marks=pytest.mark.release),
        pytest.param(networks.convex_kan, True, marks=pytest.mark.release),
        (networks.mlp, False),
    ],
)
def test_the_peers_are_convex_where_they_are_said_to_be(make, convex):
    network = networks.match_size(lambda width: make(3, 2, width), 500)
    assert abs(networks.count(network) - 500) < 50
    rows = Standard.of([quality_tasks.suite_task("vector", 3, 0.0, draw=0, seed=0, rows=100)]).rows
    network = networks.match_size(lambda width: make(3, 4, width), 500)
    draws = [network.init(jax.random.key(0))]
    best, _ = networks.train(network, draws, rows, 60, 50, [0.03], [0])
    params = jax.tree.map(lambda leaf: leaf[0], best)
    found = find_violation(lambda x: network.apply(params, x), jnp.asarray(rows.x_held[0], jnp.float32))
    assert (found is None) == convex


def test_convex_regression_fits_convex_functions():
    rng = np.random.default_rng(0)
    x, slopes = rng.uniform(-1, 1, (40, 2)), np.array([[1.0, 2.0], [-3.0, 0.5], [0.0, -1.0]])
    y = np.max(x @ slopes.T, axis=1)
    assert np.mean((regressors.fit_convex(x, y, 0.0)(x) - y) ** 2) < 1e-6
    assert np.mean((regressors.fit_convex(x, -y, 0.0)(x) + y) ** 2) > 0.1  # control


@pytest.mark.parametrize("penalty", [0.1, 0.0])
def test_convex_regression_is_the_program_with_all_constraints(penalty, monkeypatch):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(37, 3))
    y = np.abs(x).sum(axis=1) + 0.5 * rng.normal(size=37)
    value, slope = regressors.least_squares_below(x, y, penalty, *np.nonzero(~np.eye(37, dtype=bool)))
    assert (x @ slope.T + value - np.sum(slope * x, axis=1) < value[:, None] + 1e-6).all()
    np.testing.assert_allclose(regressors.fit_convex(x, y, penalty)(x), value, atol=1e-3)
    monkeypatch.setattr(regressors, "BROKEN", 1.0)  # control: constraints are left out
    assert np.abs(regressors.fit_convex(x, y, penalty)(x) - value).max() > 0.02


def test_a_rate_at_an_end_of_the_grid_is_sought_beyond_it():
    """One weight far from its end, so that a few steps do best at a high rate, many at a low one."""
    network = networks.Network(lambda key: {"w": jnp.zeros(1)}, lambda p, x: x * p["w"])
    x = np.ones((1, 32, 1))
    rows = networks.Rows(x, 7.0 * x, x, 7.0 * x)
    best = networks.best_rate(network, {"w": jnp.zeros(1)}, rows, 20, 8, (0.002, 0.008, 0.03))
    assert best > 0.1
    near = networks.Rows(x, 0.07 * x, x, 0.07 * x)
    assert networks.best_rate(network, {"w": jnp.zeros(1)}, near, 20, 8, (0.002, 0.008, 0.03)) < 0.05
    nearest = networks.Rows(x, 0.005 * x, x, 0.005 * x)
    assert networks.best_rate(network, {"w": jnp.zeros(1)}, nearest, 20, 8, (0.01, 0.04, 0.16)) < 0.005


def test_the_shape_is_chosen_on_the_rows_of_all_seeds():
    """The first seed's held-out rows prefer slope 1, all the others slope 2."""

    def line(slope):
        return networks.Network(
            lambda key: {"b": jnp.zeros(1)}, lambda p, x: slope * x + 0 * p["b"], start=lambda p, x, y: p
        )

    x = np.ones((3, 8, 1))
    y = x * np.array([1.0, 2.0, 2.0])[:, None, None]
    rows = networks.Rows(x, y, x, y)
    found = networks.tune({"one": line(1.0), "two": line(2.0)}, rows, 2, 4, (0.01, 0.04))
    assert found.shape == "two" and len(found.params) == 3
    first = networks.Rows(*[part[:1] for part in rows])
    assert networks.tune({"one": line(1.0), "two": line(2.0)}, first, 2, 4, (0.01, 0.04)).shape == "one"


@pytest.mark.parametrize(
    "model", [HULL, *[pytest.param(name, marks=pytest.mark.release) for name in (FITTED, CHOSEN, "MLP")], PLANES]
)
def test_a_job_gives_a_score(model, monkeypatch):
    monkeypatch.setattr(quality_scores, "MORE_SEEDS", 2)
    score = quality_scores.score(Job("small", model, 4, 31))
    assert score.model == model and score.parameters > 0 and len(score.errors) == 2
    assert all(0 < error < 3 for error in score.errors)
    assert (score.idle is None) == (model in (PLANES, "MLP"))
    assert quality.read_scores([quality.asdict(score)]) == [score]


@pytest.mark.parametrize("dim, noise", [(2, 0.0), (2, 0.1), (8, 0.1)])
@pytest.mark.parametrize("family", quality_tasks.FAMILIES)
def test_a_job_of_the_suite_is_given_its_family(family, dim, noise):
    tasks = quality_scores.tasks_of(Job(family, HULL, 1, 1, {"dim": dim, "noise": noise, "draw": 0}))
    assert len(tasks) == (15 if dim == 2 and family != "vector" else 5)
    for task in tasks:
        assert task.x.shape == (2000, dim) and task.name == f"{family}, D = {dim}, noise {noise:g}"
        assert np.array_equal(task.x_test, tasks[0].x_test) and np.array_equal(task.y_test, tasks[0].y_test)
    assert not np.isin(tasks[0].x, tasks[1].x).any()  # rows of its own for each seed


def test_ratios_are_geometric_means_of_medians():
    def score(task, model, *errors):
        return Score(task, model, 1, "", None, errors, 1.0, None, 0.0)

    scores = [score("a", "x", 1, 2, 9), score("a", "y", 2, 4, 4), score("b", "x", 1), score("b", "y", 8)]
    assert quality.ratios(scores) == {"x": pytest.approx(1), "y": pytest.approx(4)}


@pytest.mark.parametrize("command", quality.OTHERS)
def test_a_missing_package_is_named_before_any_work(command, monkeypatch, tmp_path):
    monkeypatch.setattr(quality.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["quality.py", command, "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match=rf"needs {quality.OTHERS[command]}: pip install"):
        quality.main()
    assert not (tmp_path / "run").exists()


def least_gap(function, x):
    """The least height of a chord between rows above the function, at a random place of each."""
    rng = np.random.default_rng(3)
    first, second, share = x[rng.integers(len(x), size=999)], x[rng.integers(len(x), size=999)], rng.uniform(size=999)
    middle = share[:, None] * first + (1 - share[:, None]) * second
    return np.min(share * function(first) + (1 - share) * function(second) - function(middle))


@pytest.mark.parametrize("number", range(len(quality_grammar.KINDS)), ids=quality_grammar.KINDS)
def test_what_the_grammar_draws_is_convex(number):
    for seed in range(8):
        drawn = quality_grammar.draw(seed, number, (200, 300))
        assert drawn.kind == list(quality_grammar.KINDS)[number]
        assert least_gap(drawn.function, drawn.task.x) > -1e-11
        assert least_gap(lambda x, f=drawn.function: -f(x), drawn.task.x) < -0.1  # control


@pytest.mark.parametrize("name", quality_grammar.SETS)
def test_distances_to_sets_are_those_of_the_nearest_point(name):
    """The gradient of half the squared distance leads from the nearest point, and is as long as the distance."""
    distance, u = quality_grammar.SETS[name][1], np.random.default_rng(0).normal(size=(200, 3))
    halves = [[0.5 * distance(u + sign * step, 0.7) ** 2 for step in 1e-6 * np.eye(3)] for sign in (1, -1)]
    way = (np.subtract(*halves) / 2e-6).T
    assert np.allclose(np.linalg.norm(way, axis=1), distance(u, 0.7), atol=1e-5) and distance(u, 0.7).max() > 0.5
    if name != "half-spaces, the farthest":  # of which the others may be left over
        assert np.allclose(distance(u - way, 0.7), 0, atol=1e-5)
        assert not np.allclose(distance(u - 0.9 * way, 0.7), 0, atol=1e-5)  # control


def test_a_draw_is_repeated_by_its_seed_and_its_noise_is_as_said():
    first, same, other = (quality_grammar.draw(seed, 4) for seed in (1, 1, 2))
    assert np.array_equal(first.task.y, same.task.y) and first.task.y.shape != other.task.y.shape
    task = first.task
    deviation = (task.y[:, 0] - first.function(task.x)).std() / task.y_test.std()
    assert 0 < first.noise <= 0.5 and abs(deviation / first.noise - 1) < 0.05
    assert np.array_equal(task.y_test[:, 0], first.function(task.x_test)) and len(task.x_test) == 4000


def record(number, model, error, total=1.0, kind="Huber"):
    sizes = {"dim": 2, "rows": 200, "inputs": "normal", "noise": 0.1, "choice": "", "seconds": 1.0}
    return {"number": number, "kind": kind, "model": model, "error": error, "total": total} | sizes


def test_a_line_a_kind_has_ratios_over_ours_and_lost_functions_are_named(capsys):
    ours = [record(0, "ours", 0.01), record(1, "ours", 1e-12), record(2, "ours", 0.04, kind="perspective")]
    peers = [record(0, "MLP", 0.04), record(1, "MLP", 4e-8), record(2, "MLP", 0.02, kind="perspective")]
    quality_unseen.show([*ours, *peers, record(0, "lpcf", 0.02), record(1, "lpcf", None)])
    shown = capsys.readouterr().out
    assert "| Huber | 2 | 0.005 | 4.00 | 2.00 |" in shown and "| perspective | 1 | 0.04 | 0.50 | - |" in shown
    assert "| all | 3 | 0.01 | 2.00 | 2.00 |" in shown and "left out of its means: 1, not finished" in shown
    lost = shown.partition("we lose by more than 1.05 on:\n")[2].splitlines()
    assert lost == ["  2: perspective, D = 2, 200 rows, normal, noise 0.10: 0.04, MLP 0.02"]


def test_what_peers_reached_on_other_rows_is_not_taken():
    ours, same, other = record(0, "ours", 0.1), record(0, "MLP", 0.1), record(0, "ridge", 0.1, total=2.0)
    assert quality_unseen.on_same_rows([same, other, record(1, "MLP", 0.1)], [ours]) == [same]


def test_peers_are_kept_and_ours_is_run_again(monkeypatch, tmp_path):
    calls = []

    def fit(task, quick):
        calls.append(len(task.x))
        return quality_unseen.Reached(0.5)

    monkeypatch.setattr(quality_unseen, "MODELS", {"ours": fit, "MLP": fit})
    ours, mlp = (quality_unseen.Job(1, 0, model, True, tmp_path) for model in ("ours", "MLP"))
    assert quality_unseen.score(mlp) == quality_unseen.score(mlp) and len(calls) == 1
    assert quality_unseen.score(ours)["error"] == quality_unseen.score(ours)["error"] == 0.5 and len(calls) == 3
    mlp.path.write_text(mlp.path.read_text().replace('"total": ', '"total": 1'))  # control: of other rows
    assert quality_unseen.score(mlp)["error"] == 0.5 and len(calls) == 4


def test_two_versions_of_ours_are_compared_without_running_the_peers_again(monkeypatch, tmp_path, capsys):
    reached, runs = {"ours": 0.2, "ridge": 0.8}, []

    def fit(name):
        return lambda task, quick: runs.append(name) or quality_unseen.Reached(reached[name])

    monkeypatch.setattr(quality_unseen, "MODELS", {name: fit(name) for name in reached})
    monkeypatch.setattr(quality_unseen, "NEEDS", {})
    monkeypatch.setattr(quality_unseen, "run", lambda work, jobs, out, workers: [work(job) for job in jobs])
    first, second = (str(tmp_path / name) for name in ("first.json", "second.json"))
    shared = ["--quick", "--draw", "1", "--functions", "2", "--kept", str(tmp_path / "kept")]
    quality_unseen.command([*shared, "--out", first])
    reached["ours"] = 0.1
    capsys.readouterr()
    quality_unseen.command([*shared, "--only", "ours", "--out", second, "--beside", first])
    assert sorted(runs) == ["ours"] * 4 + ["ridge"] * 2
    shown = capsys.readouterr().out
    assert "| kind | functions | ours | ridge over it | ours, earlier over it |" in shown
    assert "| all | 2 | 0.1 | 8.00 | 2.00 |" in shown
    quality_unseen.command([*shared[:2], "2", *shared[3:], "--only", "ours", "--out", second, "--beside", first])
    assert "earlier" not in capsys.readouterr().out  # control: other functions


@pytest.mark.parametrize("model", ["ours", pytest.param("MLP", marks=pytest.mark.release), "boosting", "ridge", "lpcf"])
def test_a_model_is_fitted_to_a_drawn_function(model, tmp_path):
    pytest.importorskip(quality_unseen.NEEDS.get(model, "numpy"))
    found = quality_unseen.score(quality_unseen.Job(3, 0, model, True, tmp_path))
    assert 0 < found["error"] < 3 and 200 <= found["rows"] <= 300


def test_without_lpcf_the_script_says_what_to_install(monkeypatch):
    monkeypatch.setattr(quality_unseen.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"needs lpcf: pip install --no-deps lpcf==0.1.1 .* pass --no-lpcf"):
        quality_unseen.command(["--only", "lpcf"])


def test_the_rule_of_he_is_drawn_apart_for_every_layer():
    network = quality_digits.network(4, "He")
    trunk = [
        layer["raw_weight"] for layer in network.init(jax.random.key(0))["trunk"].values() if "raw_weight" in layer
    ]
    weights = [np.logaddexp(np.asarray(raw), 0.0) / np.sqrt(2 * 128) for raw in trunk]
    assert len(weights) == 3 and not any(np.allclose(weights[0], other) for other in weights[1:])
    for weight in weights:
        assert abs(np.mean(weight**2) * 128 - 1) < 0.1
    own = quality_digits.network(4, "ours").init(jax.random.key(0))["trunk"]["1"]["raw_weight"]
    assert abs(np.mean((np.logaddexp(own, 0.0) / np.sqrt(2 * 128)) ** 2) * 128 - 1) > 0.1  # control


def test_a_report_without_suites_says_what_to_run(tmp_path):
    with pytest.raises(SystemExit, match="suite --dim 8"):
        quality.report(tmp_path)


def test_the_report_sets_the_hull_beside_the_best_peer(tmp_path, capsys):
    rows = {CHOSEN: 2.0, "MLP": 1.0, PLANES: 8.0, "hard maximum": 0.1}  # the last is no peer
    for noise, factor in (("0", 1.0), ("0.1", 4.0)):
        scores = [Score("t", name, 1, "s", 0.1, (e * factor,), 1.0, None, 0.0) for name, e in rows.items()]
        quality.write([quality.asdict(one) for one in scores], tmp_path / f"suite-8-{noise}.json")
    quality.report(tmp_path)
    shown = capsys.readouterr().out
    assert f"| {PLANES} | 4.00 | 4.00 | 4.00 | 4.00 |" in shown and "| t | s | 8 | MLP | 4 | 2.00 |" in shown
