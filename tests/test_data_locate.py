"""Where a data set is looked for, in which order, and what is said when it is nowhere."""

import os
import re
from pathlib import Path

import cifar_files
import pytest

from fastcifar.data import DataError, Source, cache_dir, load, locate
from fastcifar.data.download import ARCHIVES, Archive


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data set anywhere, and no network."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FASTCIFAR_DATA", raising=False)
    for dataset in ARCHIVES:
        monkeypatch.setitem(ARCHIVES, dataset, Archive("http://127.0.0.1:9/set.tar.gz", 10, "0" * 32))


def test_the_order_is_data_environment_work_folder_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = cifar_files.make(tmp_path / "given").path
    by_environment = cifar_files.make(tmp_path / "environment").path
    here = cifar_files.make(tmp_path / "work" / "data").path
    cached = cifar_files.make_archive(cache_dir()).path
    monkeypatch.setenv("FASTCIFAR_DATA", str(tmp_path / "environment"))
    assert locate(data=tmp_path / "given").path == given
    assert locate().path == by_environment
    monkeypatch.setenv("FASTCIFAR_DATA", "")
    found = locate()
    assert found.path is not None
    assert found.path.resolve() == here
    here.rename(tmp_path / "elsewhere")
    assert locate() == Source("cifar10", cached, "tar")
    cached.unlink()
    assert locate().dataset == "shapes10"


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
@pytest.mark.parametrize("kind", ["python", "binary"])
def test_a_path_may_be_the_set_or_hold_it(dataset: str, kind: str, tmp_path: Path) -> None:
    unpacked = cifar_files.make(tmp_path / "a", dataset, kind).path
    packed = cifar_files.make_archive(tmp_path / "b", dataset, kind).path
    for asked in (dataset, "auto"):
        for place in (unpacked, unpacked.parent):
            assert locate(asked, place) == Source(dataset, unpacked, kind)
        for place in (packed, packed.parent):
            assert locate(asked, place) == Source(dataset, packed, "tar")
    renamed = unpacked.rename(tmp_path / "my own name")
    assert locate(data=renamed) == Source(dataset, renamed, kind)
    other = packed.rename(tmp_path / "archive")
    assert locate(data=other) == Source(dataset, other, "tar")
    wrong = "cifar100" if dataset == "cifar10" else "cifar10"
    for place in (renamed, other):
        with pytest.raises(DataError, match=f"^{re.escape(str(place))}: holds none"):
            locate(wrong, place)


def test_a_whole_archive_is_taken_before_half_a_folder(tmp_path: Path) -> None:
    folder = cifar_files.make(tmp_path).path
    archive = cifar_files.make_archive(tmp_path).path
    assert locate(data=tmp_path).path == folder
    (folder / "test_batch").unlink()
    assert locate(data=tmp_path).path == archive
    archive.unlink()
    with pytest.raises(DataError, match="test_batch is missing"):
        locate(data=tmp_path).load()


def test_cifar10_comes_first_where_both_are(tmp_path: Path) -> None:
    cifar_files.make(tmp_path, "cifar100")
    assert locate(data=tmp_path).dataset == "cifar100"
    cifar_files.make(tmp_path, "cifar10", "binary")
    assert locate(data=tmp_path).dataset == "cifar10"
    assert locate("cifar100", tmp_path).dataset == "cifar100"


def test_cifar100_that_nobody_asked_for_is_not_taken(tmp_path: Path) -> None:
    cifar_files.make(tmp_path / "work" / "data", "cifar100")
    assert locate(download=False).dataset == "shapes10"
    assert locate("cifar100").dataset == "cifar100"


def test_the_stand_in_says_what_it_stands_in_for(tmp_path: Path) -> None:
    found = locate()
    assert (found.dataset, found.path, found.layout) == ("shapes10", None, "drawn")
    assert found.note.startswith(f"no CIFAR-10 in {tmp_path / 'work' / 'data'} or {cache_dir()}; not downloaded: ")
    assert "http://127.0.0.1:9/" in found.note
    assert "refused" in found.note
    assert locate(download=False).note.endswith("not downloaded: downloads are off")
    asked_for = locate("shapes10")
    assert asked_for == Source("shapes10", None, "drawn")
    assert asked_for.fingerprint() == found.fingerprint()


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_a_missing_set_names_three_ways_to_supply_it(dataset: str) -> None:
    with pytest.raises(DataError) as error:
        locate(dataset)
    message = str(error.value)
    assert message.startswith(f"no CIFAR-{dataset[5:]} in ")
    for way in ("(1) --data PATH or FASTCIFAR_DATA=PATH", "(2) put one of these into ./data", "(3) fetch http"):
        assert way in message
    assert str(cache_dir()) in message
    assert "\n" not in message


@pytest.mark.parametrize("dataset", ["auto", "cifar10", "cifar100"])
def test_a_path_that_was_given_must_hold_the_set(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar_files.make(tmp_path / "work" / "data")
    with pytest.raises(DataError, match=f"^{tmp_path}/none: is not there"):
        locate(dataset, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"^{tmp_path}/empty: holds none; expected CIFAR-10"):
        locate(dataset, tmp_path / "empty")
    monkeypatch.setenv("FASTCIFAR_DATA", str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"^\$FASTCIFAR_DATA .*none: is not there"):
        locate(dataset)


def test_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^dataset: got 'mnist', takes one of auto, cifar10, cifar100, shapes10$"):
        locate("mnist")


def test_a_path_is_refused_where_the_set_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCIFAR_DATA", str(cifar_files.make(tmp_path / "environment").path))
    assert locate("shapes10") == Source("shapes10", None, "drawn")
    with pytest.raises(ValueError, match=f"^--data: got {tmp_path}, takes nothing with --dataset shapes10"):
        locate("shapes10", tmp_path)


def test_paths_with_spaces_and_other_letters(tmp_path: Path) -> None:
    made = cifar_files.make(tmp_path / "m\u00ed datos \u6570\u636e")
    assert len(load("cifar10", made.path.parent).test) == 20


def test_the_cache_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_dir() == tmp_path / "cache" / "fastcifar"
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in ("", "relative/path"):  # the specification: a relative path is to be ignored
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache_dir() == tmp_path / ".cache" / "fastcifar"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where the user has no entry
    assert cache_dir().is_absolute()
