"""What is kept of a measurement and how it is shown: figures, CSV, table, picture, README."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from fastcifar.bench import figures, plot, readme, results, table
from fastcifar.bench.measure import Measured, Opened, Sample
from fastcifar.bench.results import Result, Row
from fastcifar.bench.settings import NAMES, Task, augmentation, bytes_moved
from fastcifar.kernels import Augmentation
from fastcifar.report.card import Card

ABOUT = {
    "device": "AMD EPYC 7763 64-Core Processor, 2 threads, AVX2",
    "device_kind": "cpu",
    "threads": "2",
    "load": "0.10",
    "dataset": "cifar10",
    "date": "2026-11-21",
    "revision": "0123abc",
    "versions": "python 3.11.7; torch 2.11.0; numba 0.68.1",
}


def result(bench: str = "loaders", **about: str) -> Result:
    rows = [
        Row("resident", "crop_flip.bf16", "ours", {"images_s": 1.5e6, "images_s_q1": 1.4e6, "images_s_q3": 1.7e6}),
        Row("kornia", "crop_flip.bf16", "peer", {"images_s": 3000.0, "share_of_gather": 0.002}),
        Row("copy", "crop_flip.bf16", "bound", {"gb_s": 18.0}),
        Row("resident", "crop_flip_cutmix.bf16", "ours", {"images_s": 1.2e6, "share_of_gather": 0.61}),
    ]
    return Result(bench, "Loaders, batches of 500", "images_s", rows, {**ABOUT, **about})


def test_every_figure_has_a_name_that_a_gate_can_use() -> None:
    named = result().figures()
    assert named["loaders.resident.crop_flip.bf16.images_s"] == 1.5e6
    assert named["loaders.copy.crop_flip.bf16.gb_s"] == 18.0
    assert len(named) == 8


def test_the_file_says_what_device_versions_and_date_and_reads_back_the_same(tmp_path: Path) -> None:
    kept = result()
    kept.notes += ["the copy goes through main memory", "kornia left out: not installed"]
    path = results.write_csv(kept, tmp_path)
    assert path.name == "loaders_amd-epyc-7763-2c-avx2_torch2.11_numba0.68_20261121.csv"
    again = results.read_csv(path)
    assert (again.bench, again.title, again.headline) == (kept.bench, kept.title, kept.headline)
    assert again.rows == kept.rows
    assert again.about == kept.about
    assert again.notes == kept.notes


def test_a_second_run_of_the_day_keeps_the_first(tmp_path: Path) -> None:
    first, second = (results.write_csv(result(), tmp_path) for _ in range(2))
    assert first != second
    assert first.exists()
    assert second.stem.endswith("20261121-2")


def test_a_gpu_is_named_without_threads(tmp_path: Path) -> None:
    path = results.write_csv(result("kernels", device="NVIDIA H200", device_kind="cuda"), tmp_path)
    assert path.name.startswith("kernels_nvidia-h200_torch2.11_")


@pytest.mark.parametrize(
    ("device", "slug"),
    [
        ("Intel(R) Xeon(R) Processor @ 2.10GHz (sapphirerapids), 2 threads, AMX", "intel-xeon-sapphirerapids-2c-amx"),
        ("AMD EPYC 7763 64-Core Processor (znver3), 2 threads, AVX2", "amd-epyc-7763-znver3-2c-avx2"),
        ("AMD EPYC, 2 threads, AVX512", "amd-epyc-2c-avx512"),
    ],
)
def test_a_cpu_is_named_with_its_kind_threads_and_units(device: str, slug: str) -> None:
    assert results.device_slug(device, 2) == slug


def test_the_newest_of_each_measurement_and_device_is_taken(tmp_path: Path) -> None:
    old = results.write_csv(result(date="2026-11-20"), tmp_path)
    new = [results.write_csv(result(), tmp_path) for _ in range(11)]
    gpu = results.write_csv(result(device="NVIDIA H200", device_kind="cuda", date="2026-01-01"), tmp_path)
    other = results.write_csv(result(device="AMD EPYC 7763 64-Core Processor, 2 threads, AVX512"), tmp_path)
    assert results.newest(tmp_path) == sorted([new[-1], gpu, other])
    assert old not in results.newest(tmp_path)


def test_another_csv_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"other\.csv: got no results"):
        results.read_csv(path)


def test_the_best_peer_is_of_the_same_task() -> None:
    rows = [*result().rows, Row("tensor", "crop_flip_cutmix.bf16", "peer", {"images_s": 9e6})]
    best = results.best_peer(rows, "crop_flip.bf16", "images_s")
    assert best is not None
    assert best.contestant == "kornia"
    assert results.best_peer(rows, "nothing", "images_s") is None


@pytest.mark.parametrize(
    ("value", "amount", "text"),
    [
        ("images_s", 1_234_567.8, "1,234,568"),
        ("share_of_copy", 0.0512, "5.1 %"),
        ("share_of_copy", 0.812, "81 %"),
        ("stall_share", 0.004, "0.4 %"),
        ("over_best_peer", 11.26, "11.26x"),
        ("own_memory_over_one", 1.3, "1.30x"),
        ("over_import_torch_s", 0.25, "0.25"),
        ("first_batch_ms", 0.1234, "0.123"),
    ],
)
def test_numbers_have_as_many_digits_as_mean_something(value: str, amount: float, text: str) -> None:
    assert figures.number(value, amount) == text


def test_bars_start_at_zero_and_are_as_long_as_their_share() -> None:
    assert table.bar(0, 100, 10) == ""
    assert table.bar(100, 100, 10) == "█" * 10
    assert table.bar(50, 100, 10) == "█" * 5
    assert table.bar(1.25, 100, 10) == "▏"
    assert table.bar(3, 0, 10) == ""


def test_the_table_shows_every_row_with_median_and_quartiles(capsys: pytest.CaptureFixture) -> None:
    from rich.console import Console

    Console(width=200).print(table.render(result()))
    text = capsys.readouterr().out
    assert "1,500,000 [1,400,000-1,700,000]" in text
    for word in ("resident", "kornia", "copy", "crop_flip_cutmix.bf16", "EPYC", "torch 2.11.0", "61 %", "2026-11-21"):
        assert word in text


def test_the_picture_has_an_axis_from_zero_and_grows_with_its_rows(tmp_path: Path) -> None:
    path = plot.draw(result(), tmp_path / "loaders.png")
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    longer = result()
    longer.rows += [Row(f"r{i}", "more", "peer", {"images_s": float(i)}) for i in range(20)]
    other = plot.draw(longer, tmp_path / "longer.png").read_bytes()[:24]
    assert int.from_bytes(other[20:24], "big") > int.from_bytes(head[20:24], "big")


def test_the_readme_gets_the_newest_results_between_its_marks(tmp_path: Path) -> None:
    file, kept = tmp_path / "README.md", tmp_path / "results"
    file.write_text("before\n<!-- measurements -->\nstale\n<!-- /measurements -->\nafter\n")
    results.write_csv(result(date="2026-11-20", dataset="shapes10"), kept)
    noted = result()
    noted.notes.append("the load average was 2.1 at the start")
    results.write_csv(noted, kept)
    assert readme.update(file, kept, tmp_path / "records")
    text = file.read_text()
    assert text.startswith("before\n<!-- measurements -->\nBold: ours")
    assert text.endswith("<!-- /measurements -->\nafter\n")
    assert "| crop_flip.bf16 | **resident** | 1,500,000 |" in text
    assert "\n\n*The load average was 2.1 at the start.*\n" in text
    assert "stale" not in text
    assert "shapes10" not in text
    assert "](results/loaders_amd-epyc-7763-2c-avx2_torch2.11_numba0.68_20261121.csv)" in text
    assert not readme.update(file, kept, tmp_path / "records")


def test_the_summary_is_a_column_a_device_and_a_line_a_figure(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text("<!-- summary --><!-- /summary -->")
    assert readme.summary(tmp_path) == "Nothing was measured yet."
    mixed = {"images_s": 3_367_030.0, "over_best_peer": 12.449}
    rows = [Row("resident", task, "ours", mixed) for task in ("crop_flip_cutmix.bf16", "other")]
    results.write_csv(Result("loaders", "Loaders", "images_s", rows, ABOUT), tmp_path)
    rows = [Row("npy", "copies1", "ours", {"seconds": 0.2153})]
    about = {**ABOUT, "device": "Zen, 2 threads, AVX512"}
    results.write_csv(Result("convert", "Conversion", "seconds", rows, about), tmp_path)
    assert readme.update(file, tmp_path, tmp_path / "records")
    assert file.read_text().splitlines()[1:-1] == [
        f"| | {ABOUT['device']} | {about['device']} |",
        "|---|---:|---:|",
        "| crop, flip, CutMix to bfloat16: `resident` | 3,367,030 images/s, 12.45x best peer |  |",
        "| 60,000 images to `.npy` |  | 0.215 s |",
    ]
    assert not readme.update(file, tmp_path, tmp_path / "records")


@pytest.mark.parametrize(
    ("revision", "text"),
    [
        ("3c232293ca23d58d", "; 2026-11-21; revision 3c23229; [CSV]"),
        ("3c232293ca23d58d+changes", "; 2026-11-21; revision 3c23229, with changes; [CSV]"),
        ("", "; 2026-11-21; [CSV]"),
    ],
)
def test_the_readme_says_of_which_code_a_result_is(revision: str, text: str, tmp_path: Path) -> None:
    results.write_csv(result(revision=revision), tmp_path)
    assert text in readme.measurements(tmp_path, tmp_path)


@pytest.mark.parametrize(("load", "is_busy"), [("1.00", False), ("1.50", True)])
def test_a_file_without_notes_says_by_its_load_that_the_machine_was_busy(
    load: str, is_busy: bool, tmp_path: Path
) -> None:
    path = results.write_csv(result(load=load), tmp_path)
    assert results.read_csv(path).notes == []
    # As older versions wrote it: without the last column.
    lines = path.read_text().splitlines()
    path.write_text("".join(line.removesuffix("notes").removesuffix(",") + "\n" for line in lines))
    note = f"\n\n*The load average was {load} at the start: what else ran disturbs the figures.*"
    assert (note in readme.measurements(tmp_path, tmp_path)) == is_busy


def test_streaming_says_how_own_memory_grows_also_where_the_file_does_not(tmp_path: Path) -> None:
    taken_mb = {"copies1": 280.0, "copies16": 350.0}
    rows = [Row("ffcv", task, "ours", {"images_s": 1e5, "own_memory_mb": mb}) for task, mb in taken_mb.items()]
    results.write_csv(Result("stream", "Streaming", "images_s", rows, ABOUT), tmp_path)
    text = readme.measurements(tmp_path, tmp_path)
    assert "| | | images/s | own memory MB | own memory x 1 copy |" in text
    assert "| copies1 | **ffcv** | 100,000 | 280 |  |" in text
    assert "| copies16 | **ffcv** | 100,000 | 350 | 1.25x |" in text


def test_a_readme_without_marks_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text("nothing here\n")
    with pytest.raises(ValueError, match="takes one <!-- measurements -->"):
        readme.update(file, tmp_path, tmp_path)
    assert file.read_text() == "nothing here\n"


def card(folder: Path, tta_accuracy: float, **others: Any) -> None:
    made = {
        "recipe": "speedrun",
        "dataset": "cifar10",
        "device": "AMD EPYC",
        "dtype": "float32",
        "epochs": 11.0,
        "num_parameters": 1_972_792,
        "tta": "mirror_translate",
        "accuracy": 0.93,
        "tta_accuracy": tta_accuracy,
        "seconds": {"train": 100.0, "evaluate": 10.0, "total": 130.0},
    }
    folder.mkdir(parents=True)
    (folder / "card.json").write_text(json.dumps(made | others))


def test_what_the_readme_reads_of_a_card_is_there() -> None:
    assert {f.name for f in fields(Card)} >= readme.CARD_KEYS


def test_the_records_own_table_says_kind_and_peer(tmp_path: Path) -> None:
    folder = tmp_path / "records"
    folder.mkdir()
    (folder / "README.md").write_text("Rules\n<!-- records -->\n<!-- /records -->\n")
    (tmp_path / "README.md").write_text("<!-- measurements --><!-- /measurements -->")
    card(folder / "one" / "seed0", 0.941)
    card(folder / "one" / "seed9", 0.5)  # written after the record was
    told = {"kind": "missed", "num_runs": 1, "target": 0.94, "p_value": 0.25, "energy_mean_j": 1234.0}
    told |= {"tta_accuracy_mean": 0.941, "tta_accuracy_deviation": None, "counted_mean_s": 110.0, "wall_mean_s": 130.0}
    (folder / "one" / "record.json").write_text(json.dumps(told))
    theirs = {
        "script": "other.py",
        "sha256": "",
        "dataset": "cifar10",
        "runs": {"0": {"accuracy": 0.94, "seconds": 220.0}},
    }
    (folder / "one" / "peer.json").write_text(json.dumps(theirs))
    card(folder / "two" / "seed0", 0.9)
    assert readme.update(tmp_path / "README.md", tmp_path, folder)
    lines = (folder / "README.md").read_text().splitlines()
    assert (
        lines[5] == "| [one](one) | cifar10 | missed | 1 | 94 % | 94.10 % | 0.25 | 110.0 s | 130.0 s | 1,234 J "
        "| 0.50 of other.py's 220.0 s |"
    )
    assert lines[4] == "| [two](two) | cifar10 | trial | 1 |  | 90.00 % |  | 110.0 s | 130.0 s |  |  |"
    assert not readme.update(tmp_path / "README.md", tmp_path, folder)


def test_records_are_a_line_a_folder_with_mean_and_deviation(tmp_path: Path) -> None:
    assert readme.records(tmp_path / "records", tmp_path) == "No run is on record yet."
    card(tmp_path / "records" / "first" / "seed0", 0.940)
    card(tmp_path / "records" / "first" / "seed1", 0.942)
    lines = readme.records(tmp_path / "records", tmp_path).splitlines()
    assert len(lines) == 3
    assert "| cifar10 | [speedrun](records/first) | 11 | 1,972,792 | AMD EPYC, float32 | 2 |" in lines[2]
    assert "94.10 % ± 0.14 | 100.0 s | 130.0 s |" in lines[2]


def test_of_a_recipe_and_a_device_there_is_the_newest_and_recipes_stand_together(tmp_path: Path) -> None:
    card(tmp_path / "20260103_94" / "seed0", 0.943, epochs=10.0, dtype="bfloat16")
    card(tmp_path / "20260102_95" / "seed0", 0.951, recipe="speedrun-95")
    card(tmp_path / "20260101_94" / "seed0", 0.941)
    card(tmp_path / "20260101_94-other" / "seed0", 0.942, device="Intel Xeon")
    lines = readme.records(tmp_path, tmp_path).splitlines()[2:]
    folders = [line.partition("](")[2].partition(")")[0] for line in lines]
    assert folders == ["20260103_94", "20260101_94-other", "20260102_95"]


def test_a_broken_card_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "first" / "seed0"
    folder.mkdir(parents=True)
    (folder / "card.json").write_text('{"recipe": "speedrun"}')
    with pytest.raises(ValueError, match=r"card\.json: got a card without"):
        readme.records(tmp_path, tmp_path)


@pytest.mark.parametrize("name", ["crop_flip.bf16", "crop_flip_cutmix.b16384.bf16"])
def test_a_task_is_its_name(name: str) -> None:
    assert Task.parse(name).name == name


def test_bytes_are_the_pixels_read_and_the_values_written() -> None:
    assert bytes_moved("crop_flip", 1024, "bf16") == 3072 + 6144
    assert bytes_moved("crop_flip_mixup", 1024, "fp32") == 2 * 3072 + 12288


def test_the_gather_reads_one_image_whatever_the_task_reads() -> None:
    units = {"numba": 100.0, "gather": 200.0, "copy": 1e6}
    measured = {key: Measured(Opened(2.0, 0.5), [Sample(amount, 1.0)]) for key, amount in units.items()}
    numba, gather, copy = (
        results.traffic_values(key, measured, "crop_flip_mixup.bf16", 1024, "first_call_s") for key in units
    )
    assert numba["gb_s"] == pytest.approx(100 * (2 * 3072 + 6144) / 1e9)
    assert (numba["share_of_gather"], numba["first_call_s"], numba["compile_s"]) == (0.5, 2.0, 1.5)
    assert gather["gb_s"] == pytest.approx(200 * (3072 + 6144) / 1e9)
    assert gather["share_of_copy"] == pytest.approx(200 * (3072 + 6144) / 1e6)
    assert not {"share_of_gather", "first_call_s", "compile_s"} & set(gather)
    assert copy == {"gb_s": pytest.approx(0.001), "rounds": 1}


def test_settings_say_what_their_names_say() -> None:
    made = {name: augmentation(name) for name in NAMES}
    assert made["identity"] == Augmentation()
    assert not made["crop_flip"].mixes
    assert made["crop_flip_cutmix"].cutmix == made["rotation_jitter"].cutmix == 1.0
    assert made["crop_flip_mixup"].mixup == 1.0
    assert min(made["rotation_jitter"].rotation, made["rotation_jitter"].hue) > 0
    with pytest.raises(ValueError, match="setting: got 'none'"):
        augmentation("none")
