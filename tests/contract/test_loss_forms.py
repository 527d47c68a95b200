"""Which arguments a loss gets, by its signature alone; what fits no form is refused where it is added.

The forms stand in the core; what a loss computes is tested in both packages.
"""

import functools

import jax
import numpy as np
import pytest
import torch
from documented import ROWS, example, numpy
from flax import nnx

from convexmoe import hierarchy as core
from convexmoe.hierarchy.loss_forms import loss_form

pytestmark = pytest.mark.usefixtures("quick_compilation")

GIVEN = {"output": "O", "targets": "T", "context": "C", "level_output": "L", "parent_output": "P", "child_output": "H"}
w = "w"


def forwarded(function):
    """A decorator as one writes it: what it takes is told by what it wraps."""

    @functools.wraps(function)
    def inner(*args, **options):
        return function(*args, **options)

    return inner


class Losses:
    def short(self, output):
        return (output,)

    def full(self, output, targets, context):
        return (output, targets, context)

    @classmethod
    def of_class(cls, output, targets, context):
        return (output, targets, context)

    @staticmethod
    def static(output):
        return (output,)

    def __call__(self, output, targets, context):
        return (output, targets, context)


class TorchFull(torch.nn.Module):
    def forward(self, output, targets, context):
        return (output, targets, context)


class TorchShort(torch.nn.Module):
    def forward(self, output):
        return (output,)


class JaxFull(nnx.Module):
    def __call__(self, output, targets, context):
        return (output, targets, context)


class JaxShort(nnx.Module):
    def __call__(self, output):
        return (output,)


class Both:
    """A callable with a `forward` of the same parameters, as wrappers of modules have."""

    def forward(self, output):
        return (output,)

    def __call__(self, *args):
        return self.forward(*args)


class Neither:
    """A callable with a `forward` of other parameters, which says nothing of the call."""

    def forward(self, x, y):
        raise AssertionError

    def __call__(self, output):
        return (output,)


def all_of(*args, **options):
    return (*args, *sorted(options.items()))


# (scope, name) -> (loss, what it gives back: the arguments that it got)
FORMS = {
    ("global", "short"): (lambda output: (output,), "O"),
    ("global", "documented"): (lambda output, targets, context: (output, targets, context), "OTC"),
    ("global", "other names"): (lambda o, t, c: (o, t, c), "OTC"),
    ("global", "positional alone"): (lambda o, t, c, /: (o, t, c), "OTC"),
    ("global", "late binding"): (lambda o, w=w: (o, w), "Ow"),
    ("global", "late binding, full"): (lambda o, t, c, w=w: (o, t, c, w), "OTCw"),
    ("global", "two late"): (lambda o, a=w, b=w: (o, a, b), "Oww"),
    ("global", "keyword with a default"): (lambda o, *, w=w: (o, w), "Ow"),
    ("global", "full, keyword"): (lambda o, t, c, *, w=w: (o, t, c, w), "OTCw"),
    ("global", "targets=None"): (lambda output, targets=None: (output, targets), "OT"),
    ("global", "context=None"): (lambda output, context=None: (output, context), "OC"),
    ("global", "w, context=None"): (lambda output, w=w, context=None: (output, w, context), "OwC"),
    ("global", "both None"): (lambda output, targets=None, context=None: (output, targets, context), "OTC"),
    ("global", "both None, other names"): (lambda o, t=None, c=None: (o, str(t), str(c)), "ONoneNone"),
    ("global", "full, c=None"): (lambda o, t, c=None: (o, t, c), "OTC"),
    ("global", "full, context={}"): (lambda o, t, context={}: (o, t, context), "OTC"),
    ("global", "keyword targets"): (lambda o, *, targets: (o, targets), "OT"),
    ("global", "keyword both"): (lambda o, *, context, targets: (o, targets, context), "OTC"),
    ("global", "keyword targets=None"): (lambda o, *, targets=None: (o, targets), "OT"),
    ("global", "*args"): (lambda *args: args, "OTC"),
    ("global", "*args, **kwargs"): (all_of, "OTC"),
    ("global", "o, *args"): (lambda o, *args: (o, *args), "OTC"),
    ("global", "o, **kwargs"): (lambda o, **options: (o, *options), "O"),
    ("global", "method"): (Losses().short, "O"),
    ("global", "full method"): (Losses().full, "OTC"),
    ("global", "class method"): (Losses.of_class, "OTC"),
    ("global", "static method"): (Losses.static, "O"),
    ("global", "callable object"): (Losses(), "OTC"),
    ("global", "object with a forward"): (Both(), "O"),
    ("global", "object with another forward"): (Neither(), "O"),
    ("global", "nn.Module"): (TorchFull(), "OTC"),
    ("global", "short nn.Module"): (TorchShort(), "O"),
    ("global", "nnx.Module"): (JaxFull(), "OTC"),
    ("global", "short nnx.Module"): (JaxShort(), "O"),
    ("global", "wraps"): (forwarded(lambda output: (output,)), "O"),
    ("global", "wraps, full"): (forwarded(lambda o, t, c: (o, t, c)), "OTC"),
    ("global", "cached"): (functools.lru_cache(lambda output: (output,)), "O"),
    ("global", "partial"): (functools.partial(lambda w, o: (w, o), w), "wO"),
    ("global", "partial, full"): (functools.partial(lambda w, o, t, c: (w, o, t, c), w), "wOTC"),
    ("global", "partial of partial"): (functools.partial(functools.partial(all_of, w), w), "wwOTC"),
    ("global", "partial by keyword"): (functools.partial(lambda o, w: (o, w), w=w), "Ow"),
    ("global", "partial, full, by keyword"): (functools.partial(lambda o, t, c, w: (o, t, c, w), w=w), "OTCw"),
    ("global", "partial of context"): (
        functools.partial(lambda output, targets, context: (output, targets, context), context=w),
        "OTw",
    ),
    ("global", "partial of targets"): (
        functools.partial(lambda output, targets, context: (output, targets, context), targets=w),
        "OwC",
    ),
    ("global", "partial of a full method"): (functools.partial(Losses.full, Losses(), context=w), "OTw"),
    ("global", "partial of an nn.Module"): (functools.partial(TorchFull(), context=w), "OTw"),
    ("global", "partial of an nnx.Module"): (functools.partial(JaxFull(), context=w), "OTw"),
    ("global", "partial of *args"): (functools.partial(lambda *args, w: (*args, w), w=w), "OTCw"),
    ("global", "partial of a keyword"): (functools.partial(lambda o, *, w: (o, w), w=w), "Ow"),
    ("global", "partial of keyword targets"): (functools.partial(lambda o, *, targets: (o, targets), targets=w), "Ow"),
    ("level", "short"): (lambda level: (level,), "L"),
    ("level", "documented"): (lambda level, output, targets, context: (level, output, targets, context), "LOTC"),
    ("level", "late binding"): (lambda level, w=w: (level, w), "Lw"),
    ("level", "four, late binding"): (lambda a, b, c, d, w=w: (a, b, c, d, w), "LOTCw"),
    ("level", "output=None"): (lambda level, output=None: (level, output), "LO"),
    ("level", "targets=None"): (lambda level, targets=None: (level, targets), "LT"),
    ("level", "all None"): (lambda level, a=None, b=None, targets=None: (level, str(a), targets), "LNoneT"),
    ("level", "context=None"): (lambda a, b, c, context=None: (a, b, c, context), "LOTC"),
    ("level", "keywords"): (lambda level, *, context, output: (level, output, context), "LOC"),
    ("level", "*args"): (lambda level, *rest: (level, *rest), "LOTC"),
    ("level", "partial"): (functools.partial(lambda w, level: (w, level), w), "wL"),
    ("level", "partial of output"): (
        functools.partial(lambda level, output, targets, context: (level, output, targets, context), output=w),
        "LwTC",
    ),
    ("bridge", "short"): (lambda parent, child: (parent, child), "PH"),
    ("bridge", "documented"): (lambda p, c, o, t, x: (p, c, o, t, x), "PHOTC"),
    ("bridge", "late binding"): (lambda p, c, w=w: (p, c, w), "PHw"),
    ("bridge", "margin and scale"): (lambda p, c, margin=w, scale=w: (p, c, margin, scale), "PHww"),
    ("bridge", "five, late binding"): (lambda p, c, o, t, x, w=w: (p, c, o, t, x, w), "PHOTCw"),
    ("bridge", "targets=None"): (lambda p, c, targets=None: (p, c, targets), "PHT"),
    ("bridge", "three None"): (lambda p, c, o, t=None, x=None: (p, c, o, t, x), "PHOTC"),
    ("bridge", "margins"): (lambda p, c, low=None, high=None, x=None: (p, c, str(low)), "PHNone"),
    ("bridge", "keyword context"): (lambda p, c, *, context: (p, c, context), "PHC"),
    ("bridge", "*args"): (lambda *args: args, "PHOTC"),
    ("bridge", "partial"): (functools.partial(lambda w, p, c: (w, p, c), w), "wPH"),
}


def arguments(scope, function):
    """What a loss of a scope gets, by the letters of GIVEN."""
    form = loss_form(scope, function)
    return "".join(form.call(function, GIVEN, "loss"))


@pytest.mark.parametrize(("scope", "name"), FORMS)
def test_a_loss_gets_what_its_signature_asks_for(scope, name):
    function, wanted = FORMS[scope, name]
    assert arguments(scope, function) == wanted


def test_a_function_that_jax_compiled_is_called_by_its_own_signature():
    for function, places in ((jax.jit(lambda o: o), 1), (jax.jit(lambda o, t, c: o), 3)):
        assert len(loss_form("global", function).places) == places


def test_control_another_form_is_seen():
    function, wanted = FORMS["level", "documented"]
    form = loss_form("level", function)
    for broken in (
        form._replace(places=form.places[::-1]),
        form._replace(places=form.places[:1], names=("targets", "context")),
    ):
        try:
            found = "".join(broken.call(function, GIVEN, "loss"))
        except TypeError:
            found = ""
        assert found != wanted


RULES = {
    "global": "f(output, targets, context) or f(output)",
    "level": "f(level_output, output, targets, context) or f(level_output)",
    "bridge": "f(parent_output, child_output, output, targets, context) or f(parent_output, child_output)",
}
REFUSED = [
    ("global", lambda: 0, "<lambda>()"),
    ("global", lambda o, t: 0, "<lambda>(o, t)"),
    ("global", lambda output, targets: 0, "<lambda>(output, targets)"),
    ("global", lambda a, b, c, d: 0, "<lambda>(a, b, c, d)"),
    ("global", lambda output, context, targets: 0, "<lambda>(output, context, targets)"),
    ("global", lambda context: 0, "<lambda>(context)"),
    ("level", lambda output, level_output, targets, context: 0, "<lambda>(output, level_output, targets, context)"),
    ("bridge", lambda child_output, parent_output: 0, "<lambda>(child_output, parent_output)"),
    ("global", lambda o, *, w: 0, "<lambda>(o, *, w)"),
    ("global", lambda *, output: 0, "<lambda>(*, output)"),
    ("global", Losses, "Losses()"),
    ("global", functools.partial(lambda o, t, c: 0, 1), "partial(t, c)"),
    ("global", torch.nn.MSELoss(), "MSELoss(input: torch.Tensor, target: torch.Tensor) -> torch.Tensor"),
    ("global", max, "max, whose signature cannot be read"),
    ("global", None, "None"),
    ("level", lambda level, output: 0, "<lambda>(level, output)"),
    ("level", lambda level, targets, context: 0, "<lambda>(level, targets, context)"),
    ("level", lambda l, o, c, targets: 0, "<lambda>(l, o, c, targets)"),
    ("level", lambda a, b, c, d, e: 0, "<lambda>(a, b, c, d, e)"),
    ("bridge", lambda parent: 0, "<lambda>(parent)"),
    ("bridge", lambda p, c, o, t: 0, "<lambda>(p, c, o, t)"),
    ("bridge", functools.partial(lambda p, c: 0, c=1), "partial(p, *, c=1)"),
]


@pytest.mark.parametrize(("scope", "function", "got"), REFUSED, ids=[f"{scope} {got}" for scope, _, got in REFUSED])
def test_what_fits_no_form_is_refused_where_it_is_added(scope, function, got):
    api = core.CELMoELossAPI()
    path = {"global": (), "level": ("alpha",), "bridge": ("zeta", "alpha")}[scope]
    with pytest.raises(TypeError) as error:
        getattr(api, f"add_{scope}")(*path, "name", function)
    fix = "Give it the parameters of one form; others need a default."
    assert str(error.value) == f"CELMoELossAPI.add_{scope}: expected {RULES[scope]}; got {got}. {fix}"
    assert api.compute(core.CELMoEOutput({}, None, {}, {})).terms == []


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "1", True, None])
def test_a_weight_that_is_no_finite_number_is_refused(weight):
    with pytest.raises(ValueError) as error:
        core.CELMoELossAPI().add_global("n", lambda output: 0, weight=weight)
    fix = "Pass weight=1.0, or multiply inside the loss."
    assert str(error.value) == f"CELMoELossAPI.add_global.weight: expected a finite number; got {weight!r}. {fix}"


def computed(engine, api, targets=None, context=None):
    """The terms for the output of the example; in JAX under jit, where targets and context are tracers."""
    output = example(engine)[2]
    if engine.name == "jax":
        return jax.jit(api.compute)(output, targets, context)
    return api.compute(output, targets, context)


def api_of(engine, function):
    api = engine.package.CELMoELossAPI()
    api.add_global("g", function)
    return api


HINT = "Pass compute(output, targets=..., context=...)."
NO_SUM = "got None (AttributeError: 'NoneType' object has no attribute 'sum')"
NO_ITEM = "got None (TypeError: 'NoneType' object is not subscriptable)"
ABSENT = {
    "both": (lambda o, targets, context: targets.sum(), {}, "targets and context", NO_SUM),
    "targets": (lambda o, targets, context: targets.sum(), {"context": {}}, "targets", NO_SUM),
    "context": (lambda o, targets, context: context["scale"], {"targets": 1.0}, "context", NO_ITEM),
    "short": (lambda output, *, targets: targets.sum(), {}, "targets", NO_SUM),
    "with a default": (lambda output, context=None: context["scale"], {}, "context", NO_ITEM),
}


@pytest.mark.parametrize("case", ABSENT)
def test_what_a_loss_uses_and_is_not_given_is_named(engine, case):
    function, given, absent, got = ABSENT[case]
    with pytest.raises(ValueError) as error:
        computed(engine, api_of(engine, function), **given)
    wanted = f"CELMoELossAPI.compute: expected the {absent} that 'global.g' uses; {got}. {HINT}"
    assert str(error.value) == wanted
    assert isinstance(error.value.__context__, (AttributeError, TypeError))  # the loss's own, with its line


def test_a_loss_that_looks_whether_there_are_targets_runs(engine):
    def loss(output, targets, context):
        return 2.0 if targets is None and context is None else targets.sum() * context["scale"]

    api = api_of(engine, loss)
    assert computed(engine, api).as_dict()["global.g"] == 2.0
    targets, context = engine.array(np.arange(ROWS, dtype=np.float32)), {"scale": 3.0}
    assert computed(engine, api, targets, context).as_dict()["global.g"] == 30.0


def test_an_error_of_the_losss_own_is_raised_as_it_is(engine):
    own = KeyError("no such level")

    def raises(output, targets, context):
        raise own

    with pytest.raises(KeyError) as error:
        computed(engine, api_of(engine, raises))
    assert error.value is own
    all_given = (lambda o, targets, context: None.sum()), 1.0, {"a": 1.0}
    # the second asks for none; the third is given none, but fails on another
    for function, *given in (all_given, (lambda output: None.sum(),), (lambda o, t, c: None.sum(),)):
        with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'sum'"):
            computed(engine, api_of(engine, function), *given)


class TorchScaledLoss(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, output, targets, context):
        return self.scale * ((output.fused_hidden.mean((1, 2)) - targets) ** 2).mean() * context["scale"]


class JaxScaledLoss(nnx.Module):
    def __init__(self):
        self.scale = nnx.Param(jax.numpy.asarray(3.0))

    def __call__(self, output, targets, context):
        error = output.fused_hidden.mean((1, 2)) - targets
        return self.scale[...] * (error**2).mean() * context["scale"]


def test_modules_are_losses_with_gradients(engine):
    """By targets as well, which under jit are tracers like any argument."""
    loss = TorchScaledLoss() if engine.name == "torch" else JaxScaledLoss()
    api, output = api_of(engine, loss), example(engine)[2]
    draw = np.random.default_rng(1).normal(size=ROWS).astype(np.float32)
    error = numpy(output.fused_hidden).mean((1, 2)) - draw
    if engine.name == "jax":
        value, gradient = jax.jit(
            jax.value_and_grad(lambda t, s: api.compute(output, t, {"scale": s}).terms[-1].value)
        )(draw, 2.0)
    else:
        targets = torch.tensor(draw, requires_grad=True)
        value = api.compute(output, targets, {"scale": 2.0}).terms[-1].value
        (gradient,) = torch.autograd.grad(value, targets)
    assert abs(float(numpy(value)) - 6 * (error**2).mean()) < 1e-5 * 6
    assert np.allclose(numpy(gradient), -12 * error / ROWS, rtol=1e-5, atol=1e-6)
    assert not np.allclose(numpy(gradient), -6 * error / ROWS, rtol=1e-5, atol=1e-6)  # control


def test_late_binding_is_each_losss_own(engine):
    """The loop that lambdas are known for: without `level=level` all would look at the last."""
    api, output = engine.package.CELMoELossAPI(), example(engine)[2]
    for level in ("zeta", "alpha"):
        api.add_global(level, lambda output, level=level: abs(output.levels[level].hidden).mean())
        api.add_global(f"{level}, late", lambda output: abs(output.levels[level].hidden).mean())  # noqa: B023
    found = api.compute(output).as_dict()
    sizes = {level: float(abs(numpy(output.levels[level].hidden)).mean()) for level in ("zeta", "alpha")}
    assert all(abs(found[f"global.{level}"] - size) < 1e-5 * size for level, size in sizes.items())
    assert abs(found["global.zeta, late"] - sizes["zeta"]) > 1e-3  # control


def test_context_goes_to_the_losses_as_it_is(engine):
    context, seen = {"text": "a", "deep": {"scale": 2.0}}, []
    api = api_of(engine, lambda output, targets, context: seen.append((targets, context)) or 0.0)
    api.compute(example(engine)[2], targets="t", context=context)
    assert seen[0][0] == "t" and seen[0][1] is context
