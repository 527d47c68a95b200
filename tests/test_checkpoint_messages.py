"""A checkpoint of another model: the message names the fields that differ, and no others."""

import pytest

from convexmoe.parallel import SHARDED_FORMAT, check_description

CONFIG = {"petals": 4, "depth": 1, "levels": {"a": {"names": ["x"]}}}
STORED = {"format": SHARDED_FORMAT, "kind": "VectorHull", "config": CONFIG}


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"petals": 8}, r"the config of 'run'; got petals=8, where that has 4\. Build"),
        ({"levels": {"a": {"names": ["y"]}}}, r"got levels\.a\.names=\['y'\], where that has \['x'\]\. Build"),
        ({"gate": True, "depth": 2}, r"got depth=2, where that has 1; gate=True, where that has None\. Build"),
        ({f"f{k}": 0 for k in range(9)}, r"f7=0, where that has None; and 1 more\. Build"),
    ],
)
def test_the_fields_that_differ_are_named(own, words):
    with pytest.raises(ValueError, match=r"restore_sharded\.model: expected ") as caught:
        check_description(STORED, {"kind": "VectorHull", "config": CONFIG | own}, "run")
    assert caught.match(words)
    check_description(STORED, {"kind": "VectorHull", "config": dict(CONFIG)}, "run")  # control


def test_another_kind_is_named():
    with pytest.raises(ValueError, match=r"the kind of 'run'; got kind='A', where that has 'VectorHull'\."):
        check_description(STORED, {"kind": "A", "config": {}}, "run")
