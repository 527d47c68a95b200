"""Models of PyTorch in the neutral file, which both packages read and write, byte for byte the same."""

from convexmoe.files import Package
from convexmoe.files import read_notes as read_notes

from . import layers, optimizer

_package = Package(layers, optimizer)
content_of, save, load, write = _package.content_of, _package.save, _package.load, _package.write
load_optimizer, read_optimizer = _package.load_optimizer, _package.read_optimizer
save_pretrained, load_pretrained = _package.save_pretrained, _package.load_pretrained
