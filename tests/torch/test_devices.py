"""Any device: no device named in the sources, no float64 and no host sync in a float32 step, meta tensors, autocast."""

import io
import re
import tokenize
from pathlib import Path

import cases
import pytest
import torch
from backends import BACKENDS
from deployments import CASE, ROUTINGS, ROWS, in_full
from engines import ENGINES
from hierarchies import random_weights
from tolerances import relative_error
from torch.utils._python_dispatch import TorchDispatchMode

import convexmoe_torch as cm

BACKEND = BACKENDS[1]
HULLS = ["default", "everything", "units_smooth", "relu", "one_petal"]

DEVICES = {"cpu", "cuda", "mps", "xpu", "xla", "privateuseone", "set_device", "current_device", "synchronize"}
# Where the name of a device may stand, and why.
EXCUSED = {
    "hierarchy/grouped.py": {"cpu", "cuda"},  # the order of backends by device
    "hierarchy/finite.py": {"cpu"},  # there a value is looked at without a wait
    "parallel/mesh.py": {"cpu", "cuda"},  # which one a process group of PyTorch is of
    "files/layers.py": {"cpu"},  # files are written from the memory of the host
    "files/optimizer.py": {"cpu"},  # as layers.py; and torch.optim keeps its counts there
    "convexity/search.py": {"cpu"},  # the search is numpy's, in float64, which not every device has
    "minimization.py": {"cpu"},  # known numbers are looked at in numpy
    "convexity/trace.py": {"cpu"},  # a proof looks at known numbers in numpy
    "training/engine.py": {
        "cpu"
    },  # the start of a fit is numpy's least squares, in float64, which not every device has
    "hierarchy/routes.py": {"cpu"},  # names of experts are looked up on the host, before the model runs
}


def devices_named(source):
    """Names of devices among the names and the short strings of a program; comments and docstrings are free."""
    found = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        text = re.sub(r"^\w*[\"']+|[\"']+$", "", token.string).partition(":")[0]
        if token.type in (tokenize.NAME, tokenize.STRING) and text in DEVICES:
            found.add(text)
    return found


def test_the_sources_name_no_device():
    folder = Path(cm.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        assert devices_named(path.read_text()) <= EXCUSED.get(name, set()), name


@pytest.mark.parametrize("line", ["x.cuda()", "x.to('cuda:0')", 'torch.zeros(3, device="cpu")', "x.cpu()"])
def test_control_a_device_is_found(line):
    assert devices_named(f'"""On the cpu."""\n{line}  # cpu\n') and not devices_named('"""On the cpu."""  # cuda\n')


# Operations that read a value back to the host, or whose output's shape depends on values.
SYNCS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique2", "_unique2"}


class Watch(TorchDispatchMode):
    """Records the names of operations and the dtypes of what they give."""

    def __init__(self):
        super().__init__()
        self.operations, self.dtypes = set(), set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operations.add(function.overloadpacket.__name__)
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                self.dtypes.add(value.dtype)
        return result


def watched(function):
    with Watch() as watch:
        function()
    return watch


def step(model, x):
    """Forward and backward, what a train step does on the device."""

    def run():
        model(x).square().mean().backward()

    return run


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("hull", HULLS)
def test_a_step_makes_no_float64_and_waits_for_nothing(hull, dtype):
    fields = cases.HULLS[hull]
    model = BACKEND.model(fields, cases.random_weights(fields), dtype)
    x = torch.from_numpy(cases.random_inputs(fields)).to(getattr(torch, dtype))
    for watch in (watched(step(model, x)), watched(lambda: model.winners(x)), watched(lambda: model.fold()(x))):
        assert watch.operations and not watch.operations & SYNCS
        assert watch.dtypes <= {getattr(torch, dtype), torch.float32, torch.int64, torch.int32, torch.bool}


def test_controls_a_sync_and_a_float64_are_seen():
    x = torch.ones(3)
    assert watched(lambda: x.sum().item()).operations & SYNCS
    assert watched(lambda: x[x > 0]).operations & SYNCS or watched(lambda: x[x > 0]).operations & {"index"}
    assert torch.float64 in watched(lambda: x * torch.tensor(0.5, dtype=torch.float64)[None]).dtypes


# Every operation of a step, everyday ones. Before one is added, see that cuda, mps, xpu and xla have it.
# fmt: off
OPERATIONS = {
    "_to_copy", "_unsafe_view", "add", "addmm", "alias", "amax", "bmm", "clamp", "clone", "copy_", "detach",
    "div", "div_", "empty_like", "eq", "exp", "expand", "expm1", "fill", "full_like", "ge", "gt", "le", "log", "log1p",
    "lt", "mean", "mm",
    "mul", "mul_", "neg", "new_empty_strided", "ones_like", "permute", "pow", "promote_types", "relu",
    "reshape", "roll", "scalar_tensor", "select", "select_backward", "slice", "softplus", "softplus_backward",
    "squeeze", "sub", "sum", "t", "threshold_backward", "transpose", "unsqueeze", "view", "where", "zeros",
    "zeros_like",
}
# fmt: on


@pytest.mark.parametrize("hull", [*HULLS, "huber_relu", "learned", "gate_private"])
def test_a_step_uses_everyday_operations(hull):
    fields = cases.HULLS[hull]
    model = BACKEND.model(fields, cases.random_weights(fields), "float32")
    x = torch.from_numpy(cases.random_inputs(fields)).float()
    assert watched(step(model, x)).operations <= OPERATIONS


@pytest.mark.parametrize("hull", cases.HULLS)
def test_meta_tensors_go_through(hull):
    fields = cases.HULLS[hull]
    with torch.device("meta"):
        model = cm.VectorHull.from_config(BACKEND.config(fields))
    x = torch.empty(17, cases.ROWS, fields["in_dim"], device="meta")
    shape = (17, cases.ROWS, fields["out_dim"])
    for y in (model(x), model.fold()(x), *model.winners(x)):
        assert y.device.type == "meta" and y.shape == shape
    model(x).square().mean().backward()
    assert all(value.grad.device.type == "meta" for name, value in model.named_parameters() if wins(name, fields))


def wins(name, fields):
    return not (fields["petals"] == 1 and name in ("shifts", "raw_temperature"))


def test_to_device_moves_weights_and_units():
    model = BACKEND.model(cases.HULLS["everything"], cases.random_weights(cases.HULLS["everything"]), "float32")
    moved = model.to("meta")
    assert {value.device.type for value in moved.state_dict().values()} == {"meta"}
    assert moved(torch.empty(cases.ROWS, 5, device="meta")).device.type == "meta"


def fixed(name, device="cpu"):
    model = ENGINES[1].build(CASE, random_weights(CASE), "float32").to(device)
    return model, cm.FixedHierarchy(model, ROUTINGS[name])


@pytest.mark.parametrize("name", ["one expert a level", "names"])
def test_a_hierarchy_with_fixed_routes_moves_and_waits_for_nothing(name):
    """A meta tensor has no values that could be read back."""
    x = torch.empty(ROWS, 5, device="meta")
    model, hierarchy = fixed(name, "meta")
    for one in (hierarchy, fixed(name)[1].to("meta")):
        watch = watched(lambda one=one: one(x))
        assert one(x).device.type == "meta" and watch.operations and not watch.operations & SYNCS
        assert watch.dtypes == {torch.float32, torch.bool}  # bool: which rows are finite
    assert model(x, in_full(ROUTINGS[name], ROWS)).fused_hidden.device.type == "meta"  # counts stay there
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):  # control: a look at routes there fails
        cm.routing_summary(model.config, {"a": torch.zeros(ROWS, dtype=torch.int64, device="meta")})


@pytest.mark.parametrize("hull", ["default", "learned", "gate_private", "units_smooth"])
def test_autocast_on_the_cpu(hull):
    """Products in bfloat16, weights and their gradients in float32, results near those without it."""
    fields = cases.HULLS[hull]
    model = BACKEND.model(fields, cases.random_weights(fields), "float32")
    x = torch.from_numpy(cases.random_inputs(fields)).float()
    wanted = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with Watch() as watch:
            y = model(x)
        group, _ = model.winners(x)
    assert torch.bfloat16 in watch.dtypes and group.shape == y.shape
    assert 0 < relative_error(y.detach().float(), wanted.detach()) < 3e-2
    gradients = torch.autograd.grad(y.float().sum(), [value for _, value in model.named_parameters()])
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x.bfloat16()).isfinite().all()
