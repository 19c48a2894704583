"""The examples of the public docstrings run, and everything public has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch

import sparsevae_ext as sv

MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages(sv.__path__, "sparsevae_ext.")
    if not name.endswith(("._C", ".__main__", "_ext.info"))
)
GLOBALS = {
    "torch": torch,
    "sv": sv,
    "CSRBatch": sv.CSRBatch,
    "functional": sv.functional,
    "nn": sv.nn,
    "models": sv.models,
    "data": sv.data,
}
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs=GLOBALS, optionflags=FLAGS)
    assert result.failed == 0


@pytest.mark.parametrize(
    "module", [sv.functional, sv.nn, sv.models, sv.data, sv.optim], ids=lambda m: m.__name__
)
def test_everything_public_is_documented_with_an_example(module):
    assert module.__all__
    for name in module.__all__:
        thing = getattr(module, name)
        if not (inspect.isclass(thing) or inspect.isfunction(thing)):
            continue
        if isinstance(thing, type) and issubclass(thing, (BaseException, tuple)):
            continue
        text = inspect.getdoc(thing) or ""
        assert text.strip(), f"{module.__name__}.{name} has no docstring"
        assert ">>>" in text, f"{module.__name__}.{name} has no example"
