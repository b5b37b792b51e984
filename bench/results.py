"""A measurement's result: rows of figures, their names, and the CSV file that keeps them."""

import csv
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastcifar.bench.measure import Measured, Spread, share
from fastcifar.bench.settings import Task, bytes_moved

ROLES = ("ours", "peer", "bound")


@dataclass(frozen=True)
class Row:
    """A contestant's figures on one task."""

    contestant: str
    task: str
    role: str
    values: dict[str, float]
    """By name, the unit at its end: `images_s`, `first_batch_ms`, `peak_memory_mb`; shares and ratios have none."""

    @property
    def name(self) -> str:
        """`contestant.task`."""
        return f"{self.contestant}.{self.task}"


@dataclass
class Result:
    """What one measurement gave."""

    bench: str
    title: str
    headline: str
    """Name of the value that bars show."""
    rows: list[Row]
    about: dict[str, str] = field(default_factory=dict)
    """Device, versions, date and the like, the same for every row."""
    notes: list[str] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Every figure by its full name, `bench.contestant.task.value`: what gates are about."""
        return {f"{self.bench}.{row.name}.{key}": value for row in self.rows for key, value in row.values.items()}

    def columns(self) -> list[str]:
        """Names of all values, in the order in which rows first have them."""
        return list(dict.fromkeys(key for row in self.rows for key in row.values))

    def tasks(self) -> list[str]:
        """The tasks, in the order in which they were measured."""
        return list(dict.fromkeys(row.task for row in self.rows))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        rows = [{"contestant": row.contestant, "task": row.task, "role": row.role, **row.values} for row in self.rows]
        return {"title": self.title, "headline": self.headline, "rows": rows, "notes": self.notes}


def spread_values(name: str, spread: Spread) -> dict[str, float]:
    """A figure's median under its name, its quartiles under `_q1` and `_q3`."""
    return {name: spread.median, f"{name}_q1": spread.q1, f"{name}_q3": spread.q3}


def memory_values(measured: Measured) -> dict[str, float]:
    """Peak memory, and its part that the contestant itself added; the GPU's where there was any."""
    released = measured.released
    if released is None or not released.peak_memory_mb:
        return {}
    values = {"peak_memory_mb": released.peak_memory_mb, "own_memory_mb": released.own_memory_mb}
    return {**values, "gpu_memory_mb": released.gpu_memory_mb} if released.gpu_memory_mb else values


def traffic_values(
    key: str, measured: Mapping[str, Measured], task: str, pixels: int, cold_name: str = ""
) -> dict[str, float]:
    """A contestant's images and bytes a second on a task, their shares of the gather and the copy, and its memory.

    `measured` are all on the task, `pixels` those of an image; of the copy itself, bytes a second alone. `cold_name`:
    what to call the seconds to the first result, beside `compile_s`; empty: neither is given.
    """
    one = measured[key]
    if key == "copy":
        return {"gb_s": one.rate.median / 1e9, "rounds": one.rate.num}
    told = Task.parse(task)
    # The gather reads one image, whatever the task reads.
    image_bytes = bytes_moved("identity" if key == "gather" else told.setting, pixels, told.dtype)
    values = spread_values("images_s", one.rate) | {"rounds": one.rate.num}
    values["gb_s"] = one.rate.median * image_bytes / 1e9
    if "copy" in measured:
        values["share_of_copy"] = share(one, measured["copy"], factor=image_bytes)
    if "gather" in measured and key != "gather":
        values["share_of_gather"] = share(one, measured["gather"])
    if cold_name and key != "gather":
        values[cold_name] = one.opened.cold_s
        values |= {} if one.opened.compile_s is None else {"compile_s": one.opened.compile_s}
    return values | memory_values(one)


def add_memory_growth(rows: Sequence[Row]) -> None:
    """Give rows of several copies `own_memory_over_one`: own memory by the same contestant's with one copy."""
    once_mb = {row.contestant: row.values.get("own_memory_mb") for row in rows if row.task == "copies1"}
    for row in rows:
        own_mb, base_mb = row.values.get("own_memory_mb"), once_mb.get(row.contestant)
        if row.task != "copies1" and own_mb is not None and base_mb:
            row.values["own_memory_over_one"] = own_mb / base_mb


BUSY_SHARE = 0.5
"""A load average above this share of the cores, before anything is measured, is worth a word."""


def load_notes(load: float, num_cores: int) -> list[str]:
    """A note on the system's load average at the start where the machine was busy, else none."""
    if load <= BUSY_SHARE * num_cores:
        return []
    return [f"the load average was {load:.2f} at the start: what else ran disturbs the figures"]


def device_slug(device: str, num_threads: int) -> str:
    """A device's name as part of a file's: `amd-epyc-2c-avx2`, `nvidia-h200`."""
    name = re.sub(r"\(r\)|\(tm\)|\bprocessor\b|\bcpu\b|\d+-core|@[^(]*", " ", device.split(",", maxsplit=1)[0].lower())
    slug = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    if not num_threads:
        return slug
    # Machines that call themselves the same may have other units.
    return f"{slug}-{num_threads}c-{device.rsplit(',', maxsplit=1)[-1].strip().lower()}"


def file_stem(result: Result) -> str:
    """What, device, versions, date: `kernels_amd-epyc-2c-avx2_torch2.11_numba0.68_20261121`."""
    about = result.about
    versions = dict(pair.split(" ") for pair in about["versions"].split("; ") if pair)
    short = [f"{name}{'.'.join(versions[name].split('.')[:2])}" for name in ("torch", "numba") if name in versions]
    num_threads = int(about["threads"]) if about["device_kind"] == "cpu" else 0
    return "_".join([result.bench, device_slug(about["device"], num_threads), *short, about["date"].replace("-", "")])


def write_csv(result: Result, folder: Path) -> Path:
    """Write a new file, one line a row; a second one of the same day and device gets `-2` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = file_stem(result)
    names = (stem if i == 1 else f"{stem}-{i}" for i in range(1, 10_000))
    path = next(path for name in names if not (path := folder / f"{name}.csv").exists())
    columns = ["contestant", "task", "role", *result.columns(), *result.about, "title", "headline", "notes"]
    with path.open("x", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for row in result.rows:
            values = {key: format(value, ".6g") for key, value in row.values.items()}
            named = {"contestant": row.contestant, "task": row.task, "role": row.role}
            told = {"title": result.title, "headline": result.headline, "notes": NOTES_BETWEEN.join(result.notes)}
            writer.writerow({**named, **values, **result.about, **told})
    return path


NOTES_BETWEEN = "; "
_TEXT = {"contestant", "task", "role", "title", "headline"}


def read_csv(path: Path) -> Result:
    """A result as `write_csv` kept it. `ValueError` where the file is something else."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    if not lines or not {*_TEXT, *ABOUT_NAMES} <= set(lines[0]):
        raise ValueError(f"{path}: got no results of `fastcifar bench`, takes a CSV file that it wrote")
    first = lines[0]
    rows = []
    for line in lines:
        keys = [key for key in line if key not in {*_TEXT, *ABOUT_NAMES, "notes"} and line[key]]
        rows.append(Row(line["contestant"], line["task"], line["role"], {key: float(line[key]) for key in keys}))
    about = {key: first[key] for key in ABOUT_NAMES}
    if "notes" in first:
        notes = [note for note in first["notes"].split(NOTES_BETWEEN) if note]
    else:
        # A file of an older version; it says how many threads there were, as many as cores where nobody asked.
        notes = load_notes(float(about["load"]), int(about["threads"]))
    return Result(path.stem.split("_")[0], first["title"], first["headline"], rows, about, notes)


ABOUT_NAMES = ("device", "device_kind", "threads", "load", "dataset", "date", "revision", "versions")


def about(device: str, kind: str, num_threads: int, load: float, dataset: str) -> dict[str, str]:
    """What every row of a result says beside its figures; `load` is the system's load average at the start."""
    from fastcifar.report.environment import revision, versions

    values = (
        device,
        kind,
        str(num_threads),
        f"{load:.2f}",
        dataset,
        time.strftime("%Y-%m-%d"),
        revision(),
        "; ".join(f"{name} {version}" for name, version in versions().items()),
    )
    return dict(zip(ABOUT_NAMES, values, strict=True))


_STEM = re.compile(r"(?P<what>[^_]+)_(?P<device>[^_]+)_.*?(?P<date>\d{8})(?:-(?P<number>\d+))?$")


def newest(folder: Path) -> list[Path]:
    """The newest CSV file of every measurement and device, by what their names say, sorted by name."""
    found: dict[tuple[str, str], tuple[tuple[str, int], Path]] = {}
    for path in folder.glob("*.csv"):
        if (match := _STEM.match(path.stem)) is not None:
            key = match["what"], match["device"]
            age = match["date"], int(match["number"] or 1)
            found[key] = max(found.get(key, (("", 0), path)), (age, path))
    return sorted(path for _, path in found.values())


def best_peer(rows: Iterable[Row], task: str, value: str) -> Row | None:
    """The peer with the largest value on a task."""
    peers = [row for row in rows if row.task == task and row.role == "peer" and value in row.values]
    return max(peers, key=lambda row: row.values[value], default=None)
