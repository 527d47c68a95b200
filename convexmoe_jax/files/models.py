"""Models of JAX in the neutral file, which both packages read and write, byte for byte the same."""

from convexmoe.files import Package, read_notes

from . import layers, optimizer

__all__ = [
    "content_of",
    "load",
    "load_optimizer",
    "load_pretrained",
    "read_notes",
    "read_optimizer",
    "save",
    "save_pretrained",
]

_package = Package(layers, optimizer)
content_of, save, load = _package.content_of, _package.save, _package.load
load_optimizer, read_optimizer = _package.load_optimizer, _package.read_optimizer
save_pretrained, load_pretrained = _package.save_pretrained, _package.load_pretrained
