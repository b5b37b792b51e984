"""Imports that wait, and what they do to the collector."""

import gc
import sys

import pytest

from fastcifar.kernels import lazy


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a module that notes whether the collector is on while it is imported."""
    folder = tmp_path / "waiting"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from fastcifar.kernels.lazy import attributes\n"
        "__getattr__ = attributes(__name__, {'value': 'home', 'gone': 'home'})\n"
    )
    (folder / "home.py").write_text("import gc\nvalue = object()\nenabled = gc.isenabled()\n")
    monkeypatch.syspath_prepend(tmp_path)
    import waiting

    yield waiting
    for name in [name for name in sys.modules if name.partition(".")[0] == "waiting"]:
        del sys.modules[name]


def test_a_name_is_imported_on_first_use_with_the_collector_at_rest(package):
    assert "waiting.home" not in sys.modules
    value = package.value
    home = sys.modules["waiting.home"]
    assert value is home.value and vars(package)["value"] is value
    assert not home.enabled
    assert gc.isenabled()


@pytest.mark.parametrize("name", ["other", "gone"])
def test_a_name_that_is_nowhere_is_an_attribute_error(package, name):
    with pytest.raises(AttributeError, match=name):
        getattr(package, name)
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with pytest.raises(RuntimeError), lazy.quick_imports():
            raise RuntimeError
        assert not gc.isenabled()
    finally:
        gc.enable()
