"""Every contract runs on both packages."""

import backends
import cases
import engines
import pytest


@pytest.fixture(params=backends.BACKENDS, ids=lambda backend: backend.name)
def backend(request):
    """The package under test."""
    return request.param


@pytest.fixture(params=engines.ENGINES, ids=lambda engine: engine.name)
def engine(request):
    """The package under test, for hierarchies."""
    return request.param


@pytest.fixture(params=cases.HULLS)
def fields(request):
    """The fields of a hull, one of the table."""
    return cases.HULLS[request.param]


@pytest.fixture
def replace(backend, monkeypatch):
    """`replace(module, name, value)` puts something broken into the package under test, for a control."""

    def put(module, name, value):
        backend.forget()
        monkeypatch.setattr(module, name, value)

    yield put
    backend.forget()
