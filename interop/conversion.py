"""The former name of `interop.convert`."""

from .convert import FORMS, Conversion, convert

__all__ = ["FORMS", "Conversion", "convert"]
