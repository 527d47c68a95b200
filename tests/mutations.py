"""Changes of a saved model: of its bytes, of its header, of its description, of its tensors; sealed anew or not."""

import json
import struct
from contextlib import suppress

import numpy as np
import safetensors.numpy

from convexmoe.files import format


def parts(data):
    """Header and tensors of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header, rest):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def flip(data, rng):
    """One to eight bits flipped."""
    changed = bytearray(data)
    for place in rng.integers(0, len(data), rng.integers(1, 9)):
        changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def cut(data, rng):
    return data[: rng.integers(len(data))]


def grow(data, rng):
    return data + rng.bytes(rng.integers(1, 64))


def move(data, rng):
    """A piece of the file in the place of another."""
    size = int(rng.integers(1, 256))
    a, b = (int(place) for place in rng.integers(0, len(data) - size, 2))
    return data[:a] + data[b : b + size] + data[a + size :]


def edit(data, rng):
    """A field of one tensor's description changed: shape, dtype, place or name."""
    header, rest = parts(data)
    name = str(rng.choice([key for key in header if key != "__metadata__"]))
    field = header[name]
    kind = rng.integers(8)
    if kind == 0:
        size = [0, 1, 2, 7, 2**31, 2**62, -1, 1.0, True, "3", None, 10**400][rng.integers(12)]
        field["shape"][rng.integers(len(field["shape"]))] = size
    elif kind == 1:
        field["dtype"] = [*("F64", "F16", "BF16", "I32", "U8", "F8_E4M3", "X"), None, 7, ["F32"]][rng.integers(10)]
    elif kind == 2:
        field["data_offsets"][rng.integers(2)] += int(rng.integers(-8, 9)) or 1
    elif kind == 3:
        ending = ["\x1b[31m", "\n", ".", "..", "/", "\ud800", "é", str(rng.integers(9))][rng.integers(8)]
        header[name + ending] = header.pop(name)
    elif kind == 4:
        other = str(rng.choice([key for key in header if key not in (name, "__metadata__")]))
        header[name], header[other] = header[other], header[name]
    elif kind == 5:
        field[str(rng.choice(["dtype", "shape", "data_offsets", "more"]))] = [None, {}, [], 0, "x"][rng.integers(5)]
    elif kind == 6:  # a name that stands twice
        text = json.dumps(header)
        twice = text[:-1] + f", {json.dumps(name)}: {json.dumps(field)}}}"
        return struct.pack("<Q", len(twice)) + twice.encode() + rest
    else:
        header[name] = [None, [], "x", 0][rng.integers(4)]
    return joined(header, rest)


def nested(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


STRANGE = [
    *(None, -1, 0, 0.5, 2**70, 10**400, 1e308, True, False, "", "x", "relu", "1", "\ud800", "\x1b[31mred", "a\nb"),
    *([], {}, [[[]]], [1, "x"], {"a": None}, nested(600), float("nan"), float("inf")),
]


def strange(values, rng):
    """Plain values with one of them, at any depth, replaced, removed, doubled or renamed."""
    places = []

    def walk(part):
        for key in part if isinstance(part, dict) else range(len(part)):
            places.append((part, key))
            if isinstance(part[key], (dict, list)):
                walk(part[key])

    walk(values)
    part, key = places[rng.integers(len(places))]
    kind = rng.integers(8)
    if kind == 0:
        del part[key]
    elif kind == 1 and isinstance(part, dict):
        part[["x", "\x1b[2J", "\ud800", ""][rng.integers(4)]] = part.pop(key)
    elif kind == 2 and isinstance(part, list):
        part.insert(key, part[key])
    elif kind == 3 and type(part[key]) in (int, float, bool):  # the same number of another kind
        part[key] = [str(part[key]), [part[key]], float(part[key]), bool(part[key]), -part[key]][rng.integers(5)]
    else:
        part[key] = STRANGE[rng.integers(len(STRANGE))]
    return values


def described(data, change):
    header, rest = parts(data)
    entry = change(json.loads(header["__metadata__"]["convexmoe"]))
    header["__metadata__"]["convexmoe"] = json.dumps(entry)
    return joined(header, rest)


def describe(data, rng):
    """A value of the model's description changed."""
    return described(data, lambda entry: strange(entry, rng))


def metadata(data, rng):
    """The entry of the description, or what it stands in, replaced."""
    header, rest = parts(data)
    if rng.integers(2):
        header["__metadata__"] = STRANGE[rng.integers(len(STRANGE))]
    else:
        header["__metadata__"]["convexmoe"] = STRANGE[rng.integers(len(STRANGE))]
    return joined(header, rest)


def sealed(data, change=None, arrays=None):
    """The file with its description or its tensors changed and its sha256 made to fit, as another program may."""
    header, _ = parts(data)
    entry = json.loads(header["__metadata__"]["convexmoe"])
    tensors = safetensors.numpy.load(data)
    if change is not None:
        entry = change(entry)
    if arrays is not None:
        arrays(tensors)
    if isinstance(entry, dict):
        with suppress(ValueError, RecursionError, KeyError):  # nothing can seal some
            entry["sha256"] = format.digest({k: v for k, v in entry.items() if k != "sha256"}, tensors)
    return safetensors.numpy.save(tensors, {"convexmoe": json.dumps(entry)})


def forge(data, rng):
    """A value of the description changed, and sealed."""
    return sealed(data, lambda entry: strange(entry, rng))


def retensor(data, rng):
    """A tensor changed, and sealed: other numbers, another dtype or shape, one too many or too few."""

    def change(tensors):
        name = str(rng.choice(sorted(tensors)))
        value = tensors[name].copy()
        kind = rng.integers(7)
        if kind < 3:
            value.reshape(-1)[rng.integers(value.size)] = [-np.inf, np.nan, np.inf][rng.integers(3)]
            tensors[name] = value
        elif kind == 3:
            tensors[name] = value.astype([np.float64, np.float16, np.int32, bool][rng.integers(4)])
        elif kind == 4:
            shapes = [(0,), (), (1, *value.shape), (value.size,)]
            tensors[name] = np.zeros(shapes[rng.integers(4)], value.dtype)
        elif kind == 5:
            del tensors[name]
        else:
            tensors[name + [".more", "2", "."][rng.integers(3)]] = value

    return sealed(data, arrays=change)


MUTATIONS = (flip, cut, grow, move, edit, describe, metadata, forge, retensor)
