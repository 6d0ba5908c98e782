"""The published methods: one class each, found by the name that `-tr` takes."""

from .method import Method, Record
from .registry import find_method, method_registry, offering_package

__all__ = ["Method", "Record", "find_method", "method_registry", "offering_package"]
