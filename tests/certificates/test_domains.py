"""Certificates on a stated domain: verdicts, what they say of it, and segments that stay in it down to its faces."""

import json
from fractions import Fraction
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from attack import contradictions, show, traced, walked
from domain_table import INF, NEGATIVE, NONNEGATIVE, POSITIVE, SIGNED, TABLE
from engines_of_proof import ENGINES, Jax
from random_programs import Instruction

from convexmoe import Ball, Box
from convexmoe.convexity import homogeneous, products, search, shifts
from convexmoe.convexity.domain import Domain
from convexmoe.convexity.facts import CONCAVE, CONVEX, Value, curvature_word, variable
from convexmoe.convexity.refinements import Refinements
from convexmoe.convexity.segments import draw_segments, search_region
from convexmoe.convexity.walk import Walk
from convexmoe_jax.convexity.atoms import recognize
from convexmoe_jax.convexity.rules import RULES, sorts
from convexmoe_jax.convexity.trace import trace

ROWS = {row.name: row for row in TABLE}
SEARCHED_IN_JAX = ("cube of what may be negative", "quotient")  # a search compiles there; PyTorch searches every row
by_engine = pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)


def is_inside(violation, box):
    return all(((end >= box.lower) & (end <= box.upper)).all() for end in (violation.left, violation.right))


def in_rows(engine, function):
    """A function of the table for rows, as `find_violation` takes it."""
    if engine.name == "torch":
        return torch.vmap(lambda x: function(engine.xp, x).reshape(-1))
    return jax.vmap(lambda x: jnp.ravel(function(engine.xp, x)))


@by_engine
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_verdict_and_curvature(engine, row):
    searched = engine.name == "torch" or row.name in SEARCHED_IN_JAX
    found = engine.certify(row, domain=row.domain, **({} if searched else {"segments": 0}))
    verdict = row.verdict if searched or row.verdict == "proved" else "unknown"
    assert (found.verdict, found.outputs[0].weakest) == (verdict, row.curvature), str(found)
    assert found.violation is None or is_inside(found.violation, row.domain)


@pytest.mark.parametrize("row", [row for row in TABLE if row.verdict == "proved"], ids=lambda row: row.name)
def test_a_proof_holds_against_a_search(row):
    points = torch.as_tensor(np.random.default_rng(0).uniform(0.2, 0.8, (4, 3)))
    function = in_rows(ENGINES[1], row.function)
    assert ENGINES[1].package.find_violation(function, points, domain=row.domain, segments=3_000) is None


def test_names_are_their_own():
    assert len(ROWS) == len(TABLE) and min(sum(row.verdict == v for row in TABLE) for v in ("proved", "refuted")) >= 25


# The same function where the domain is larger, or is not stated.


@by_engine
@pytest.mark.parametrize("name", ["cube", "x log x", "reciprocal", "square over linear", "geometric mean", "barrier"])
def test_control_nothing_is_proved_without_the_domain(engine, name):
    for larger in (None, SIGNED):
        assert engine.certify(ROWS[name], domain=larger, segments=0).outputs[0].weakest == "unknown"


# Faults of the rules, seen on the graphs of the table.


@lru_cache(maxsize=1)
def graphs():
    engine = Jax()
    return [(row, trace(lambda x, row=row: row.function(engine.xp, x), engine.example(row.shape))) for row in TABLE]


def wrong_rows():
    """The rows whose curvature is not what the table says, and whether too much is said."""
    for row, graph in graphs():
        box = Domain(*(np.broadcast_to(side, row.shape) for side in (row.domain.lower, row.domain.upper)))
        walk = Walk(graph, RULES, recognize, Refinements(graph.inputs, sorts, box))
        [value] = walk.run([variable(row.shape, *box)])
        if curvature_word(value) != row.curvature:
            yield row.name, row.verdict != "proved"


DEGREE = shifts._degree
POWER_PRODUCT, LOG_PRODUCT, MIRROR = products.power_product, products.log_product, products._mirror


def put(owner, name, value):
    return lambda patch: patch.setattr(owner, name, value)


FAULTS = {
    "the domain is above 0": put(Value, "nonnegative", property(lambda value: np.ones(value.shape, bool))),
    "a pole may be on a face": put(Value, "positive", property(lambda value: value.lower >= 0)),
    "a Hessian is that outside of the domain": put(
        Domain, "spread", lambda self: (np.zeros_like(self.lower), np.ones_like(self.lower))
    ),
    "the sum of exponents does not count": put(
        products,
        "power_product",
        lambda turned, powers, values: POWER_PRODUCT(turned, [(2 * p if p > 0 else p, w) for p, w in powers], values),
    ),
    "all exponents are whole": put(
        products,
        "power_product",
        lambda turned, powers, values: POWER_PRODUCT(turned, [(p, True) for p, _ in powers], values),
    ),
    "what is negative turns nothing": put(
        products, "_mirror", lambda value, power, whole: (MIRROR(value, power, whole)[0], np.zeros(value.shape, bool))
    ),
    "the value's own logarithm is enough": put(
        products,
        "log_product",
        lambda turned, powers, kinds, values: LOG_PRODUCT(
            turned, powers, [(kind, 5 * factor if kind == "own" else factor) for kind, factor in kinds], values
        ),
    ),
    "x log x rises everywhere": put(products, "RISES_FROM", 0.0),
    "the order of a mean does not count": put(homogeneous, "_rounding", lambda walk, operation: 9.0),
    "every divisor makes a perspective": put(
        homogeneous,
        "_quotients",
        lambda walk, inner, t: (k for k, made in walk.graph.makers.items() if made.name == "div"),
    ),
    "a temperature does not count": put(
        shifts, "_degree", lambda *given: (DEGREE(*given)[0], Fraction(int(np.sign(DEGREE(*given)[1]))))
    ),
}


def test_without_a_fault_nothing_is_wrong():
    assert list(wrong_rows()) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_proves_too_much(fault, monkeypatch):
    FAULTS[fault](monkeypatch)
    assert any(too_much for _, too_much in wrong_rows())


BASES = [lambda x: x[0], lambda x: x[1], lambda x: x[0] + x[1], lambda x: x[0] ** 0.5, lambda x: x[1] ** 2]
BASES += [lambda x: -x[0], lambda x: 2.0 - x[1], lambda x: 2.0 + 0.0 * x[0], lambda x: -1.5 + 0.0 * x[0]]


def power_at(chosen, numbers, x):
    return np.prod([BASES[k](x) ** p for k, p in zip(chosen, numbers, strict=True)], 0)


def entropy_at(chosen, numbers, x):
    return BASES[chosen[0]](x) * sum(p * np.log(BASES[k](x)) for k, p in zip(chosen, numbers, strict=True))


def midpoints(function, rng):
    """The least and the largest of f(middle) - mean f(ends) on random segments, in units of f; NaN without numbers."""
    one, two = (rng.uniform(0.1, 3.0, (2, 3_000)) for _ in range(2))
    with np.errstate(all="ignore"):
        ends, middle = (function(one) + function(two)) / 2, function((one + two) / 2)
    gap = (middle - ends) / max(np.abs(ends).max(), 1.0)
    return gap.min(), gap.max()


@pytest.mark.parametrize("kind", ["powers", "logarithms"])
def test_random_products(kind):
    """What is said of products at random holds on random segments, and something is said of many."""
    rng, said = np.random.default_rng(5), {CONVEX: 0, CONCAVE: 0}
    graph = trace(lambda x: jnp.stack([base(x) for base in BASES]), jnp.ones(2))
    [values] = Walk(graph, RULES, recognize).run([variable((2,), 0.1, 3.0)])
    for _ in range(1_000):
        chosen = [int(k) for k in rng.choice(len(BASES), 3, replace=kind == "logarithms")]
        numbers = [float(p) for p in rng.choice([-2, -1, -1, -0.5, 0.5, 1, 1, 2, 3], 3)]
        known = [values.map(lambda part, k=k: part[k]) for k in chosen]
        if kind == "powers":
            found = products.power_product(False, [(Fraction(p), p == int(p)) for p in numbers], known)
            real = all(value.positive or value.negative or p > 0 for value, p in zip(known, numbers, strict=True))
        else:
            kinds = [("own" if k == chosen[0] else "other", Fraction(p)) for k, p in zip(chosen, numbers, strict=True)]
            found = products.log_product(False, [], kinds, [known[0], *known])
            real = all(value.positive for value in known)
        function = power_at if kind == "powers" else entropy_at
        least, most = midpoints(partial(function, chosen, numbers), rng)
        if real and np.isfinite([least, most]).all():
            assert not found.has(CONVEX) or most <= 1e-9, (chosen, numbers)
            assert not found.has(CONCAVE) or least >= -1e-9, (chosen, numbers)
            said = {fact: count + int(found.has(fact)) for fact, count in said.items()}
    assert min(said.values()) >= 10


BOXES = [(0.1, 3.0), (-2.0, -0.5), (0.0, 2.0), (-0.5, 1.5), (0.25, INF), (1.0, 1.0)]
FREQUENT = [
    "mul",
    "mul",
    "mul",
    "div",
    "div",
    "log",
    "sqrt",
    "neg",
    "cube",
    "inverse",
    "power 0.25",
    "power 1.5",
    "rsqrt",
]
FREQUENT += ["add", "sub", "abs", "mul constant", "add constant", "parameter", "max", "roll"]


@pytest.mark.parametrize("count", [300, pytest.param(20_000, marks=pytest.mark.release)])
def test_no_claim_of_random_programs_in_a_domain_is_false(count):
    """Each value of each program, as `test_fuzzer.py` has them everywhere; the programs are mostly of products."""
    rng, bent = np.random.default_rng([count, 8]), 0
    for number in range(count):
        size, length, sides = int(rng.integers(1, 4)), int(rng.integers(2, 9)), BOXES[number % len(BOXES)]
        drawn = zip(
            rng.choice(FREQUENT, length), rng.integers(0, 4, (length, 3)), rng.integers(0, 30, length), strict=True
        )
        program = [Instruction(str(name), *map(int, at), int(k)) for name, at, k in drawn]
        claimed = walked(size, traced(size, program), sides)
        assert contradictions(size, program, number, claimed, sides) == [], (sides, show(size, program))
        bent += bool((claimed[-1].curved & ~claimed[-1].affine).any())
    assert bent > count / 10


# What a certificate says of its domain.


@by_engine
def test_a_certificate_has_its_domain(engine):
    found = engine.certify(ROWS["reciprocal"], domain=Box(0.1, [INF, 4.0, INF]))
    assert found.reason == "convex in its input on 0.1 <= x <= [inf  4. inf], in exact arithmetic (numeric)"
    assert json.loads(found.to_json())["domain"] == {"lower": [0.1] * 3, "upper": [None, 4.0, None]}
    assert found.outputs[0].lower.tolist() == pytest.approx([0.0, 0.25, 0.0])
    everywhere = engine.certify(ROWS["logarithm of softplus"])
    assert everywhere.domain is None and json.loads(everywhere.to_json())["domain"] is None
    stopped = engine.certify(ROWS["reciprocal"], domain=NONNEGATIVE, segments=0)
    assert "may be no real number" in stopped.reason and stopped.domain.lower.tolist() == [0.0] * 3


@by_engine
def test_several_arguments_and_inputs_one_by_one(engine):
    package, xp = engine.package, engine.xp
    arguments = (engine.example((3,)), xp.array(2.0))

    def function(x, y):
        return xp.sum(x**2) / y

    for where in ((None, Box(0.1, INF)), Box(0.1, [INF])):
        found = package.certify(function, arguments, argnum=(0, 1), domain=where, per_input=True, segments=0)
        assert found.verdict == "proved" and found.outputs[0].per_input[-1] == "nonincreasing"
        assert found.outputs[0].per_input[0] == ("unknown" if isinstance(where, tuple) else "nondecreasing")
    alone = package.certify(lambda x, y: x * y, arguments[::-1], domain=Box(1, 2), segments=0)
    assert alone.verdict == "proved" and alone.outputs[0].weakest == "affine"
    rows = package.certify(lambda x: 1.0 / x, xp.array(np.ones((2, 3))), domain=Box([0.1, 0.2, 0.3], 9), segments=0)
    assert rows.verdict == "proved" and rows.outputs[0].upper[1] == pytest.approx([10, 5, 10 / 3], rel=1e-9)


def test_faults_have_the_same_words():
    def messages(engine):
        x = engine.example((3,))
        boxes = [3, Ball([0.0] * 3, 1.0), Box([0, 0], [1, 1]), (NONNEGATIVE,) * 2, Box(np.zeros((2, 3)), 1)]
        for box in boxes:
            for call in (engine.package.certify, engine.package.find_violation):
                with pytest.raises((ValueError, TypeError)) as caught:
                    call(engine.xp.abs, x if call is engine.package.certify else x[None] + x[:, None], domain=box)
                yield f"{caught.type.__name__}: {caught.value}"

    one, other = (list(messages(engine)) for engine in ENGINES)
    assert one == other and len(set(one)) >= 8
    assert one[2].startswith("TypeError: certify.domain: expected a Box") and "got Ball" in one[2]


# The search.


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_segments_stay_in_the_domain_down_to_its_faces(dtype):
    """Every point at which the function is computed; the bounds are no numbers of float32."""
    box, seen = Box([-0.7, -INF], [0.3, 0.1]), []

    def function(x):
        seen.append(x.detach().double().numpy().copy())
        return -torch.sum(torch.abs(x) ** 1.5, dim=1, keepdim=True)

    points = torch.tensor([[5.0, 0.0], [6.0, 0.05]]).to(getattr(torch, dtype))
    found = ENGINES[1].package.find_violation(function, points, domain=box, segments=5_000)
    at = np.concatenate(seen)
    assert found is not None and (at >= box.lower).all() and (at <= box.upper).all()
    faces = {"float64": 0.0, "float32": 1e-7, "bfloat16": 1e-2}[dtype]
    assert at[:, 0].min() <= -0.7 + faces and at.max(axis=0) == pytest.approx(box.upper, abs=faces)


@by_engine
def test_control_a_search_that_ignores_the_domain_leaves_it(engine, monkeypatch):
    points = engine.xp.array(np.linspace(-1, 2, 6).reshape(2, 3))
    function = in_rows(engine, ROWS["cube"].function)
    assert engine.package.find_violation(function, points, domain=NONNEGATIVE, segments=2_000) is None
    region = search.search_region
    monkeypatch.setattr(search, "search_region", lambda points, domain: region(points, None))
    found = engine.package.find_violation(function, points, domain=NONNEGATIVE, segments=2_000)
    assert found is not None and not is_inside(found, NONNEGATIVE)


def test_the_whole_domain_is_searched():
    """Far from the example too; without a domain the search stays around it."""
    package = ENGINES[1].package

    def bent(x):
        return -torch.relu(torch.sum(x) - 150.0)

    assert package.certify(bent, torch.ones(3), segments=4096).verdict == "unknown"
    found = package.certify(bent, torch.ones(3), domain=Box(0, 100), segments=4096)
    assert found.verdict == "refuted" and is_inside(found.violation, Box(0, 100))


@pytest.mark.parametrize("box", [POSITIVE, NEGATIVE, Box(2, 2), Box([0, -INF], [INF, 3]), Box(-1e300, 1e-320)])
def test_segments_drawn_lie_in_the_domain(box):
    domain = Domain(*(np.broadcast_to(side, (2,)) for side in (box.lower, box.upper)))
    region = search_region(np.array([[-3.0, 0.5], [4.0, 0.6]]), domain)
    for left, right, _ in draw_segments(region, 2_000, 0):
        ends = np.stack([left, right])
        assert (ends >= domain.lower).all() and (ends <= domain.upper).all()
        for side in domain:
            assert ((ends == side).any(axis=(0, 1)) | np.isinf(side)).all()


def test_a_face_may_be_infinite_and_no_other_point():
    package, points = ENGINES[1].package, torch.tensor([[0.5, 1.0], [1.0, 0.5]])
    assert package.find_violation(lambda x: -torch.log(x), points, domain=NONNEGATIVE, segments=2_000) is None
    for function in (lambda x: x * torch.log(x), lambda x: torch.log(x), lambda x: 1 / (torch.clamp(x, min=0.4) - 0.4)):
        with pytest.raises(ValueError, match="expected finite values"):
            package.find_violation(function, points, domain=NONNEGATIVE, segments=2_000)
