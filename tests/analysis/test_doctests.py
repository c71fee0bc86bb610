"""The examples in the docstrings of the analysis run, and give what they say."""

import doctest
import importlib
import pkgutil

import pytest

import longshort.analysis

MODULES = [
    "longshort.analysis",
    *(f"longshort.analysis.{found.name}" for found in pkgutil.iter_modules(longshort.analysis.__path__)),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_public_functions_have_examples():
    finder = doctest.DocTestFinder()
    for function in (longshort.analysis.correlations, longshort.analysis.compare):
        (example,) = finder.find(function, function.__name__)
        assert example.examples
