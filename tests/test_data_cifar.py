"""CIFAR is read from every form that it is distributed in, to the pixel, and a bad file is named for what it is."""

import gzip
import hashlib
import json
import os
import tarfile
import time
from pathlib import Path

import cifar_files
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.data import DataError, Dataset, Source, locate
from fastcifar.data import tar as tar_reader

FORMS = [
    (dataset, kind, packed)
    for dataset in ("cifar10", "cifar100")
    for kind in ("python", "binary")
    for packed in (False, True)
]


def make(dest: Path, dataset: str, kind: str, packed: bool, seed: int = 0) -> cifar_files.Made:
    write = cifar_files.make_archive if packed else cifar_files.make
    return write(dest, dataset, kind, num_test=20, seed=seed)


def read(path: Path) -> Dataset:
    return locate(data=path).load()


@pytest.mark.parametrize(("dataset", "kind", "packed"), FORMS)
def test_every_form_gives_the_same_pixels_and_labels(dataset: str, kind: str, packed: bool, tmp_path: Path) -> None:
    made = make(tmp_path, dataset, kind, packed)
    source = locate(dataset, made.path)
    assert source == Source(dataset, made.path, "tar" if packed else kind)
    found = source.load()
    assert found.name == f"{dataset}-small"
    assert found.num_classes == len(found.class_names) == (10 if dataset == "cifar10" else 100)
    for part, images, labels in (
        (found.train, made.train_images, made.train_labels),
        (found.test, made.test_images, made.test_labels),
    ):
        assert part.images_nhwc.dtype == np.uint8
        assert part.labels_n.dtype == np.int64
        assert part.images_nhwc.flags.c_contiguous
        assert part.images_nhwc.flags.writeable
        np.testing.assert_array_equal(part.images_nhwc, images)
        np.testing.assert_array_equal(part.labels_n, labels)
        assert part.class_names == made.class_names
        assert (part.dataset, part.source) == (found.name, str(made.path))
    assert (found.train.part, found.test.part) == ("train", "test")


def test_a_set_saved_again_by_python_3_is_read(tmp_path: Path) -> None:
    import pickle

    made = cifar_files.make(tmp_path)
    expected = read(made.path)
    for protocol in (2, 4, 5):
        for file in made.path.iterdir():
            content = pickle.loads(file.read_bytes(), encoding="bytes")
            file.write_bytes(pickle.dumps(content, protocol))
        assert read(made.path).train.sha256() == expected.train.sha256()


def test_a_set_saved_again_without_titles_is_read(tmp_path: Path) -> None:
    made = cifar_files.make(tmp_path)
    for number in range(5):
        rewrite(made.path / f"data_batch_{number + 1}", batch_label=None)
    np.testing.assert_array_equal(read(made.path).train.images_nhwc, made.train_images)


# Real data


def test_real_cifar10_is_read_to_the_byte(real_cifar10: Path) -> None:
    source = locate("cifar10", real_cifar10)
    found = source.load()
    assert found.name == "cifar10"
    assert found.train.images_nhwc.shape == (50_000, 32, 32, 3)
    assert found.test.images_nhwc.shape == (10_000, 32, 32, 3)
    assert np.bincount(found.train.labels_n).tolist() == [5000] * 10
    assert np.bincount(found.test.labels_n).tolist() == [1000] * 10
    mean = found.train.images_nhwc.mean(axis=(0, 1, 2)) / 255
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=5e-5)
    manifest = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10" / "manifest.json"
    if manifest.is_file():
        expected = json.loads(manifest.read_text(encoding="ascii"))["sha256"]
        assert hashlib.sha256(found.train.images_nhwc).hexdigest() == expected["train_images_nhwc"]
        assert hashlib.sha256(found.test.images_nhwc).hexdigest() == expected["test_images_nhwc"]
    start_s = time.process_time()
    source.load()
    assert time.process_time() - start_s < 3  # 0.4 s where nothing else runs


# Bad files


def rewrite(file: Path, **changes: object) -> None:
    """Puts other values into a pickle; None takes the key out."""
    import pickle

    content = pickle.loads(file.read_bytes(), encoding="latin1") | changes
    file.write_bytes(cifar_files.pickled({key: value for key, value in content.items() if value is not None}))


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as error:
        read(path)
    message = str(error.value)
    assert "\n" not in message
    return message.replace(str(path), "SET")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return cifar_files.make(tmp_path).path


ROWS = np.zeros((20, 3072), np.uint8)
WRONG_CONTENT = [
    ({"labels": [0] * 19}, "19 labels for 20 images; expected one each"),
    ({"labels": [0] * 19 + [10]}, "image 19 has label 10; expected 0 to 9"),
    ({"labels": [0, -1] + [0] * 18}, "image 1 has label -1; expected 0 to 9"),
    ({"labels": ["cat"] * 20}, "labels is a list, not all of it integers; expected a list"),
    ({"labels": None}, "holds 'batch_label, data, filenames'; expected 'labels'"),
    ({"labels": ROWS[:, 0]}, "labels is a ndarray; expected a list"),
    ({"labels": None, "fine_labels": [0] * 20}, "expected 'labels'"),
    ({"data": ROWS[:, :3071]}, "data is uint8 [20, 3071]; expected uint8 [n, 3072]"),
    ({"data": ROWS.reshape(20, 3, 1024)}, "data is uint8 [20, 3, 1024]; expected uint8 [n, 3072]"),
    ({"data": ROWS.astype(np.int64)}, "an array of type 'i8'; expected uint8 (u1)"),
    ({"data": [0] * 20}, "data is a list; expected an array uint8 [n, 3072]"),
    ({"data": ROWS[:0], "labels": []}, "holds no images; expected at least one"),
    (
        {"data": ROWS[:19], "labels": [0] * 19},
        "holds 19 images; expected 20, as num_cases_per_batch in batch",
    ),
    ({"batch_label": "training batch 3 of 5"}, "is labelled 'training batch 3 of 5'; expected 'training batch 2 of 5'"),
    ({"batch_label": "testing batch 1 of 1"}, "is labelled 'testing batch 1 of 1'; expected 'training batch 2 of 5'"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_CONTENT, ids=[message for _, message in WRONG_CONTENT])
def test_wrong_content_of_a_batch_is_named(changes: dict, message: str, folder: Path) -> None:
    rewrite(folder / "data_batch_2", **changes)
    found = refusal(folder)
    assert found.startswith("SET/data_batch_2: ")
    assert message in found


def test_a_test_batch_in_place_of_a_training_batch_is_named(folder: Path) -> None:
    (folder / "test_batch").replace(folder / "data_batch_4")
    (folder / "test_batch").write_bytes((folder / "data_batch_1").read_bytes())
    assert "data_batch_4: is labelled 'testing batch 1 of 1'; expected 'training batch 4 of 5'" in refusal(folder)


WRONG_META = [
    ({"label_names": list(cifar_files.CIFAR10_CLASSES[:9])}, "9 class names; expected 10"),
    ({"label_names": ["cat"] * 10}, "1 class names; expected 10"),
    ({"label_names": list(cifar_files.CIFAR10_CLASSES[::-1])}, "the classes are 'truck, ship, horse"),
    (
        {"label_names": ["a\nb", *cifar_files.CIFAR10_CLASSES[1:]]},
        r"label_names holds 'a\nb'; expected short names",
    ),
    ({"label_names": None}, "holds 'num_cases_per_batch, num_vis'; expected 'label_names'"),
    ({"num_cases_per_batch": None}, "num_cases_per_batch is None; expected a count of 1 or more"),
    ({"num_cases_per_batch": 0}, "num_cases_per_batch is 0; expected a count of 1 or more"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_META, ids=[message for _, message in WRONG_META])
def test_wrong_class_names_are_named(changes: dict, message: str, folder: Path) -> None:
    rewrite(folder / "batches.meta", **changes)
    found = refusal(folder)
    assert found.startswith("SET/batches.meta: ")
    assert message in found


def test_the_real_counts_are_expected_where_the_set_claims_to_be_whole(folder: Path) -> None:
    """A real batches.meta beside shortened batches: 10,000 images are expected in each."""
    rewrite(folder / "batches.meta", num_cases_per_batch=10_000)
    assert "data_batch_1: holds 20 images; expected 10,000" in refusal(folder)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_file_that_is_cut_off_is_named(name: str, share: float, folder: Path) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(len(data) * share)])
    found = refusal(folder)
    assert found.startswith(f"SET/{name}: ends early")
    assert f"of {int(len(data) * share)})" in found


def test_missing_files_are_named_together(folder: Path) -> None:
    (folder / "data_batch_2").unlink()
    assert refusal(folder).startswith("SET: data_batch_2 is missing; expected batches.meta, data_batch_1")
    (folder / "test_batch").unlink()
    assert refusal(folder).startswith("SET: data_batch_2, test_batch are missing; expected")


def test_what_is_no_plain_file_is_refused_and_not_waited_for(folder: Path) -> None:
    (folder / "data_batch_2").unlink()
    os.mkfifo(folder / "data_batch_2")
    assert refusal(folder) == "SET/data_batch_2: is no plain file; expected a file of CIFAR"
    (folder / "data_batch_2").unlink()
    (folder / "data_batch_2").mkdir()
    assert refusal(folder) == "SET/data_batch_2: is no plain file; expected a file of CIFAR"


def test_a_huge_file_is_refused_before_it_is_read(folder: Path) -> None:
    with open(folder / "data_batch_1", "r+b") as file:
        file.truncate(1 << 40)
    assert "data_batch_1: has 1,099,511,627,776 bytes; expected at most" in refusal(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(folder: Path) -> None:
    (folder / "data_batch_1").chmod(0)
    assert refusal(folder) == "SET/data_batch_1: cannot be read (Permission denied)"


def test_wrong_sizes_and_labels_of_the_binary_version_are_named(tmp_path: Path) -> None:
    folder = cifar_files.make(tmp_path, kind="binary").path
    file = folder / "data_batch_5.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    expected = "SET/data_batch_5.bin: 61,459 bytes are no whole number of images; expected 3,073 bytes an image"
    assert refusal(folder) == f"{expected} (30,730,000 for 10,000)"
    file.write_bytes(whole[:-3073])
    assert refusal(folder) == "SET/data_batch_5.bin: holds 19 images; expected 20, as in the other batches"
    file.write_bytes(whole[: 3 * 3073] + b"\xd3" + whole[3 * 3073 + 1 :])
    assert refusal(folder) == "SET/data_batch_5.bin: image 3 has label 211; expected 0 to 9"
    file.write_bytes(b"")
    assert refusal(folder) == "SET/data_batch_5.bin: holds no images; expected at least one"


@pytest.mark.parametrize(("kind", "test_name"), [("python", "test"), ("binary", "test.bin")])
def test_cifar100_with_a_part_of_another_size_is_refused(kind: str, test_name: str, tmp_path: Path) -> None:
    small = cifar_files.make(tmp_path / "small", "cifar100", kind, num_test=10)
    large = cifar_files.make(tmp_path / "large", "cifar100", kind, num_test=20)
    (small.path / test_name).replace(large.path / test_name)
    assert f"{test_name}: holds 10 images; expected 20, five training images" in refusal(large.path)


def test_cifar100_has_fine_labels(tmp_path: Path) -> None:
    folder = cifar_files.make(tmp_path, "cifar100").path
    (folder / "train").write_bytes((folder / "train").read_bytes().replace(b"fine_labels", b"mine_labels"))
    assert "SET/train: holds 'batch_label, mine_labels, data" in refusal(folder)


# Archives


def members(made: cifar_files.Made) -> list[tuple[str, bytes]]:
    return [(f"{made.path.name}/{file.name}", file.read_bytes()) for file in sorted(made.path.iterdir())]


@pytest.fixture
def packed(tmp_path: Path) -> tuple[list[tuple[str, bytes]], Path]:
    """The members of a good archive, and where to write another."""
    return members(cifar_files.make(tmp_path / "made")), tmp_path / "set.tar.gz"


@pytest.mark.parametrize("make_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_that_tar_programs_make_are_read(make_format: int, packed: tuple, tmp_path: Path) -> None:
    path = packed[1]
    with tarfile.open(path, "w:gz", format=make_format, pax_headers={"comment": "by hand"}) as archive:
        archive.add(tmp_path / "made" / "cifar-10-batches-py", "./cifar-10-batches-py")
    assert read(path).name == "cifar10-small"


def test_nothing_of_an_archive_is_written_anywhere(packed: tuple, tmp_path: Path) -> None:
    inside, path = packed
    evil = [(f"{'../' * 20}{tmp_path}/outside", b"evil"), (f"{tmp_path}/outside", b"evil"), ("../outside", b"evil")]
    path.write_bytes(cifar_files.tar_gz(inside[:1] + evil + inside[1:]))
    before = sorted(tmp_path.rglob("*"))
    assert read(path).name == "cifar10-small"
    assert sorted(tmp_path.rglob("*")) == before


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_a_link_or_a_device_under_a_known_name_is_refused(kind: bytes, packed: tuple) -> None:
    inside, path = packed
    header = special("cifar-10-batches-py/data_batch_1", kind, "/etc/passwd")
    path.write_bytes(cifar_files.tar_gz([*(m for m in inside if not m[0].endswith("data_batch_1")), (header, b"")]))
    assert "data_batch_1: is a link, a folder or a device in the archive; expected a plain file" in refusal(path)


def test_a_member_that_comes_twice_is_refused(packed: tuple) -> None:
    inside, path = packed
    path.write_bytes(cifar_files.tar_gz([*inside, inside[2]]))
    assert f"{inside[2][0]}: is in the archive twice; expected once" in refusal(path)


def test_a_missing_member_is_named(packed: tuple) -> None:
    inside, path = packed
    path.write_bytes(cifar_files.tar_gz([member for member in inside if "batch_3" not in member[0]]))
    assert refusal(path).startswith("SET: data_batch_3 is missing; expected all of them in cifar-10-batches-py/")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_an_archive_that_is_cut_off_is_named(share: float, packed: tuple) -> None:
    inside, path = packed
    data = cifar_files.tar_gz(inside)
    path.write_bytes(data[: int(len(data) * share)])
    assert refusal(path).startswith("SET: ends early, at byte ")


def test_a_tar_that_is_cut_off_inside_a_whole_gzip_is_named(packed: tuple) -> None:
    inside, path = packed
    tar = gzip.decompress(cifar_files.tar_gz(inside))
    path.write_bytes(gzip.compress(tar[: len(tar) // 2]))
    assert refusal(path).startswith("SET: the tar archive ends early, at byte ")
    path.write_bytes(gzip.compress(tar[: len(tar) // 2 // 512 * 512]))
    assert refusal(path).startswith("SET: the tar archive ends early, at byte ")


def test_a_damaged_archive_is_found_by_its_checksum(packed: tuple) -> None:
    """A changed pixel is no wrong pickle: only gzip's own checksum can tell."""
    inside, path = packed
    tar = bytearray(gzip.decompress(cifar_files.tar_gz(inside)))
    stored = bytearray(gzip.compress(bytes(tar), compresslevel=0))
    stored[len(stored) // 2] ^= 1
    path.write_bytes(stored)
    assert "SET: is damaged or no .tar.gz" in refusal(path)
    assert "CRC" in refusal(path)


NO_ARCHIVES = {
    "empty": b"",
    "text": b"not an archive",
    "compressed text": gzip.compress(b"not a tar" * 100),
    "compressed nothing": gzip.compress(b""),
}


@pytest.mark.parametrize("data", NO_ARCHIVES.values(), ids=NO_ARCHIVES)
def test_what_is_no_archive_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz"):
        read(path)


def test_bombs_in_an_archive_stop_early(packed: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, path = packed
    monkeypatch.setattr(tar_reader, "MAX_EXPANDED_BYTES", 4 << 20)
    path.write_bytes(cifar_files.tar_gz([inside[0], ("cifar-10-batches-py/readme.html", bytes(20 << 20)), *inside[1:]]))
    assert "SET: expands to more than 4,194,304 bytes" in refusal(path)
    path.write_bytes(cifar_files.tar_gz([inside[0], *[(f"{number}", b"") for number in range(1100)], *inside[1:]]))
    assert "SET: holds more than 1,000 files" in refusal(path)


def test_a_header_that_promises_too_much_is_refused(packed: tuple) -> None:
    inside, path = packed
    tar = bytearray(gzip.decompress(cifar_files.tar_gz(inside[1:2])))
    tar[124:136] = b"77777777777\0"
    tar[148:156] = b"%06o\0 " % (sum(tar[:148]) + 8 * 32 + sum(tar[156:512]))
    path.write_bytes(gzip.compress(tar))
    assert "data_batch_1: has 8,589,934,591 bytes; expected at most" in refusal(path)


@pytest.fixture(scope="module")
def good_tar(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    folder = tmp_path_factory.mktemp("tar")
    made = cifar_files.make(folder / "made", num_test=1)
    return gzip.decompress(cifar_files.tar_gz(members(made))), folder / "set.tar.gz"


@settings(max_examples=100)
@given(data=st.data())
def test_a_damaged_tar_is_read_or_refused(data: st.DataObject, good_tar: tuple[bytes, Path]) -> None:
    tar, path = good_tar
    changed = bytearray(tar)
    for _ in range(data.draw(st.integers(1, 4))):
        header = data.draw(st.sampled_from(range(0, len(tar) - 1024, 512)))
        changed[header + data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
    path.write_bytes(gzip.compress(changed, compresslevel=0))
    try:
        assert len(read(path).train) == 5
    except DataError as error:
        assert str(path) in str(error)


# Fingerprints and checks


@pytest.mark.parametrize(("dataset", "kind", "packed"), FORMS)
def test_a_fingerprint_changes_with_any_byte_and_not_with_the_path(
    dataset: str, kind: str, packed: bool, tmp_path: Path
) -> None:
    first, second, other = (
        make(tmp_path / name, dataset, kind, packed, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    prints = [locate(dataset, made.path).fingerprint() for made in (first, second, other)]
    assert prints[0] == prints[1] != prints[2]
    assert len(prints[0]) == 64
    file = first.path if packed else sorted(first.path.iterdir())[-1]
    file.write_bytes(file.read_bytes() + b"\0")
    assert Source(dataset, first.path, "tar" if packed else kind).fingerprint() != prints[0]
    file.unlink()
    with pytest.raises(DataError, match=r"cannot be read \(No such file"):
        Source(dataset, first.path, "tar" if packed else kind).fingerprint()
