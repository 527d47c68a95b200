"""The cost benchmark runs and counts right; the hull keeps its bound on parameters and multiply-adds. No times here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import dispatch
import hull_cost
import jax
import jax.numpy as jnp
import named_networks
import pytest
import rounding
import scaling
import timing

pytestmark = pytest.mark.usefixtures("quick_compilation")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
BOUND = 1.5
MODELS = {"jax": hull_cost.jax_models, "torch": hull_cost.torch_models}


def counts(framework: str, D: int, P: int, **options) -> dict[str, dict[str, int]]:
    shapes, _, _ = MODELS[framework](D, P, 1, options)
    return {name: hull_cost.count(shape) for name, shape in shapes.items()}


def ratios(framework: str, D: int, P: int, **options) -> list[float]:
    """Parameters and multiply-adds of the hull over those of the MLP."""
    both = counts(framework, D, P, **options)
    return [both["hull"][key] / both["MLP"][key] for key in ("parameters", "macs")]


@pytest.mark.parametrize("framework", MODELS)
def test_counts_are_those_made_by_hand(framework):
    trunk, readout, hidden_of_readout = 5 * 7, 5 * 3 * 5, 7 * 3 * 5
    hull = {"macs": trunk + readout + hidden_of_readout}
    hull["parameters"] = hull["macs"] + 7 + 3 * 5 + 3  # biases of the trunk and the read-out, shifts
    mlp = {"macs": 5 * 20 + 20 * 5, "parameters": 5 * 20 + 20 + 20 * 5 + 5}
    assert counts(framework, 5, 3, hidden_dim=7) == {"MLP": mlp, "hull": hull}


@pytest.mark.parametrize("framework", MODELS)
def test_parameters_and_multiply_adds_at_512_and_8_petals(framework):
    assert counts(framework, 512, 8)["MLP"]["parameters"] == 2 * 512 * 2048 + 2048 + 512
    assert max(ratios(framework, 512, 8)) <= BOUND


@pytest.mark.parametrize("framework", MODELS)
def test_control_a_wrong_hidden_dim_breaks_the_bound(framework):
    assert min(ratios(framework, 512, 8, hidden_dim=512)) > BOUND


def test_multiply_adds_are_those_pytorch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    rows = 3
    shapes, forwards, _ = hull_cost.torch_models(5, 3, rows, {"hidden_dim": 7})
    for name, forward in forwards.items():
        with FlopCounterMode(display=False) as counter:
            forward()
        assert counter.get_total_flops() == 2 * rows * hull_cost.count(shapes[name])["macs"], name


def test_rounds_alternate_and_ratios_are_taken_within_a_round(monkeypatch):
    """The machine slows down from call to call; a ratio within a round still finds the factor of two, nearly."""
    names = []

    def slower_and_slower(call, repeats, clock):
        names.append(call())
        return {"MLP": 1.0, "hull": 2.0}[names[-1]] * 1.01 ** len(names)

    monkeypatch.setattr(timing, "duration", slower_and_slower)
    result = timing.compare({"MLP": lambda: "MLP", "hull": lambda: "hull"}, [("hull", "MLP")], rounds=100)
    timed = names[2 * timing.WARM_UP :]
    assert timed[:4] == ["MLP", "hull", "hull", "MLP"] and len(timed) == 200
    assert result["ratio"]["hull / MLP"] == pytest.approx([2 / 1.01, 2, 2 * 1.01], rel=2e-4)


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(BENCHMARKS.parent), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=1800)


@pytest.mark.slow
def test_script_prints_three_tables_and_writes_its_records(tmp_path):
    path = tmp_path / "cost.json"
    options = ["--quick", "--threads", "1", "--sizes", "5,3", "--rows", "4", "--json", str(path)]
    result = run("hull_cost.py", *options)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("| --- |") == 3
    records = json.loads(path.read_text())["records"]
    found = [(record["framework"], record["kind"]) for record in records]
    assert found == [("jax", "model"), ("jax", "fusion"), ("torch", "model"), ("torch", "fusion")]
    assert records[0]["counts"] == records[2]["counts"]
    for record in records:
        assert min(*record["forward"]["ratio"].values(), *record["step"]["ratio"].values())[0] > 0


def test_script_refuses_more_threads_than_cores():
    result = run("hull_cost.py", "--threads", "100000")
    assert result.returncode == 2
    assert "the cores there are; got [100000]" in result.stderr


@pytest.mark.parametrize(
    ("cases", "experts"),
    [(["2,6"], ["linear"]), pytest.param(["2,6", "3,6,5"], ["linear", "mlp"], marks=pytest.mark.release)],
)
def test_dispatch_prints_a_line_for_each_case(tmp_path, cases, experts):
    path = tmp_path / "dispatch.json"
    options = ["--cases", *cases, "--experts", *experts, "--rounds", "1", "--json", str(path)]
    result = run("dispatch.py", *options)
    assert result.returncode == 0, result.stderr
    lines = len(cases) * len(experts)
    assert result.stdout.count("| jax |") == result.stdout.count("| torch |") == lines
    for record in json.loads(path.read_text())["records"]:
        for part in dispatch.PARTS:
            assert list(record[part]["ratio"]) == [f"{a} / {b}" for a, b in dispatch.PAIRS]
            assert min(map(min, record[part]["ratio"].values())) > 0


def test_dispatch_refuses_to_time_what_differs():
    """Control: a subject that computes something else than the loop stops the benchmark."""
    dispatch.check({"uniform": lambda: [[1.0]], "loop": lambda: [[1.0]]})
    with pytest.raises(SystemExit, match=r"differ by 5\.0e-01"):
        dispatch.check({"uniform": lambda: [[1.0]], "loop": lambda: [[2.0]]})


def test_what_lifts_a_float32_hull_above_its_chords_is_rounding():
    """Control: the same weights in float64 are lifted by nothing that float64 does not round."""
    exact, *_ = [name for name in rounding.PACKAGES if "float64" in name]
    for package in rounding.PACKAGES.keys() - {exact}:
        largest = rounding.measure(package, 3, False, 0)[2]
        assert 1e-8 < largest < 1e-3, package
    assert rounding.measure(exact, 3, False, 0)[2] < 1e-12


def one_hidden_layer(weight):
    """A network that stands for a published one: convex where `weight` makes no number negative."""

    def init(key):
        names = zip(("x", "w_zs"), ((named_networks.DIM, 5), (5,)), jax.random.split(key), strict=True)
        return {name: jax.random.normal(part, shape) for name, shape, part in names}

    def apply(params, x):
        return jax.nn.relu(x @ params["x"]) @ weight(params["w_zs"])

    return named_networks.Network("stand-in", init, apply)


def found(network, **options):
    return named_networks.judge(network, **{"seeds": 2, "steps": 5, "segments": 2000} | options)


def test_a_network_with_positive_weights_is_proved_in_every_state():
    for finding in found(one_hidden_layer(jnp.abs)):
        count = 1 if finding.state == "any parameters" else 2
        assert (finding.proved, finding.refuted, finding.unknown, finding.found) == (count, 0, 0, 0)
        assert finding.stops == ""


def test_control_a_network_with_weights_of_any_sign_is_refuted():
    anything, *others = found(one_hidden_layer(lambda weight: weight), steps=2)
    assert (anything.proved, anything.refuted, anything.unknown) == (0, 0, 1)
    for finding in others:
        assert finding.refuted == finding.found == 2 and finding.gap > 0
        assert finding.stops.startswith("dot_general at ")
    lines = named_networks.report([anything, *others]).splitlines()
    assert "| 2 of 2 |" in lines[-1] and "dot_general" in lines[-1]


def test_projected_weights_stay_so_while_they_train():
    free = one_hidden_layer(lambda weight: weight)
    projected = free._replace(project=named_networks.clip_hidden_kernels)
    _, drawn, trained = found(projected)
    assert drawn.proved == trained.proved == 2
    params = named_networks.train(projected, free.init(jax.random.key(0)), jnp.ones((4, 2)), steps=1)
    assert float(params["w_zs"].min()) >= 0 > float(params["x"].min())


def test_without_its_peer_the_script_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ott", None)
    with pytest.raises(SystemExit, match=r"needs ott-jax .* pip install -e \".\[jax,peers\]\""):
        named_networks.published_networks()


@pytest.mark.release
def test_growth_and_devices_run(tmp_path):
    grown = run("scaling.py", "--quick", "--plot", str(tmp_path / "scaling.png"))
    assert grown.returncode == 0, grown.stderr
    assert grown.stdout.count("| hull |") == 5 and grown.stdout.count("| level |") == 4
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    device = run("gpu.py", "--any", "--quick")
    assert device.returncode == 0, device.stderr
    assert device.stdout.count("bfloat16") == 3


def test_an_exponent_is_that_of_the_upper_half():
    assert scaling.exponent([1, 2, 4, 8], [9.0, 3.0, 12.0, 48.0]) == pytest.approx(2)
    assert scaling.exponent([1, 2], [1.0, 8.0]) == pytest.approx(3)
