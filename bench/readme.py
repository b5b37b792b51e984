"""The tables of Markdown files, written from the result files and the records between pairs of HTML comments."""

import json
import os
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastcifar.bench import figures
from fastcifar.bench.results import Result, Row, add_memory_growth, newest, read_csv
from fastcifar.bench.table import about_line
from fastcifar.report.card import mean_and_deviation, percent
from fastcifar.report.record import Peers

# In this order, with these columns; the CSV files have all the others.
COLUMNS = {
    "kernels": ("images_s", "gb_s", "share_of_copy", "share_of_gather"),
    "loaders": (
        "images_s",
        "gb_s",
        "share_of_copy",
        "share_of_gather",
        "over_best_peer",
        "first_batch_ms",
        "cold_first_batch_s",
        "own_memory_mb",
    ),
    "start": ("seconds", "over_import_torch_s"),
    "convert": ("seconds", "gb_s", "over_linear", "peak_memory_mb", "memory_over_one"),
    "stream": (
        "images_s",
        "rate_over_one",
        "peak_memory_mb",
        "memory_over_one",
        "own_memory_mb",
        "own_memory_over_one",
    ),
    "step": ("images_s", "forward_ms", "backward_ms", "optimizer_ms", "tflop_s", "share_of_matmul", "stall_share"),
}

# What the other columns are shares of, and what nobody trains with, is left to the files.
LEFT_OUT = {
    "kernels": ("reference", "gather", "copy"),
    "loaders": ("copy",),
}


# The figures that a summary shows: what they are of, bench, contestant, task, values.
_MIXED, _CONVERTED = "crop_flip_cutmix.bf16", "copies1"
SUMMARY = (
    (
        "crop, flip, CutMix to bfloat16: `resident`",
        "loaders",
        "resident",
        _MIXED,
        ("images_s", "share_of_gather", "over_best_peer"),
    ),
    ("`ffcv`", "loaders", "ffcv", _MIXED, ("images_s",)),
    ("`dali`", "loaders", "dali", _MIXED, ("images_s",)),
    ("torchvision's DataLoader", "loaders", "torchvision", _MIXED, ("images_s",)),
    ("the fused kernel alone", "kernels", "numba", _MIXED, ("images_s", "share_of_gather")),
    ("the kernel with rotation and colour", "kernels", "numba", "rotation_jitter.bf16", ("images_s",)),
    ("60,000 images to `.npy`", "convert", "npy", _CONVERTED, ("seconds",)),
    ("to FFCV's `.beton`", "convert", "ffcv", _CONVERTED, ("seconds",)),
    ("to DALI's TFRecords", "convert", "dali", _CONVERTED, ("seconds",)),
    ("start of a process to its first batch", "start", "resident", "first_batch", ("seconds", "over_import_torch_s")),
    ("training step of `speedrun`, bfloat16 with int8 products", "step", "eager", "step.int8", ("images_s",)),
    ("training step of `speedrun`, bfloat16", "step", "eager", "step.bf16", ("images_s",)),
    ("training step of `speedrun`, float32", "step", "eager", "step.fp32", ("images_s",)),
)


LEGEND = """Bold: ours; italic: a bound of the machine; plain: other loaders (`tensor`, `tensor_batch`: plain PyTorch).
*of copy* and *of gather*: bytes moved a second as a share of a memory copy's, and images a second as a share of only
fetching and widening them, both measured in the same run; more than 100 % is possible where a batch stays in the cache.
Up to revision 2ea3049 the gather asked for no memory ahead: older shares of it are too high (`bench/LOG.md`).
*of matmul*: the arithmetic of the convolutions as they are defined, by the rate of a matrix product; more than 100 % is
possible where they take fewer multiplications. Beside products of 8 bits (int8) it is bfloat16's.
*cold first batch*: from opening the loader to its first batch, compiling included where nothing was compiled before.
*x linear*: the time, by that of one copy times the copies."""


def _newest_results(folder: Path) -> list[tuple[Result, Path]]:
    """The newest result file of every measurement and device in a folder, by device."""
    results = [(read_csv(path), path) for path in newest(folder)]
    order = {bench: place for place, bench in enumerate(COLUMNS)}
    results = [pair for pair in results if pair[0].bench in order]
    return sorted(results, key=lambda pair: (pair[0].about["device"], order[pair[0].bench]))


def summary(folder: Path) -> str:
    """Markdown of a table of the newest results in `folder`: a column for each device, a line for each of SUMMARY."""
    results = [result for result, _ in _newest_results(folder)]
    devices = list(dict.fromkeys(result.about["device"] for result in results))
    if not devices:
        return "Nothing was measured yet."
    rows = {
        (result.about["device"], result.bench, row.contestant, row.task): row
        for result in results
        for row in result.rows
    }
    lines = [f"| | {' | '.join(devices)} |", f"|---|{'---:|' * len(devices)}"]
    for what, bench, contestant, task, values in SUMMARY:
        found = [rows.get((device, bench, contestant, task)) for device in devices]
        if any(found):
            lines.append(f"| {what} | {' | '.join(_in_words(row, values) for row in found)} |")
    return "\n".join(lines)


def _in_words(row: Row | None, values: Sequence[str]) -> str:
    """Figures with what they are of, for a table without headings."""
    if row is None:
        return ""
    units = {"seconds": "s", "over_import_torch_s": "s of it beyond importing torch"}
    there = [value for value in values if value in row.values]
    return ", ".join(
        f"{figures.number(value, row.values[value])} {units.get(value, figures.heading(value).removeprefix('x '))}"
        for value in there
    )


def measurements(folder: Path, base: Path) -> str:
    """Markdown of the newest result file of every measurement and device in `folder`; files are named from `base`."""
    results = _newest_results(folder)
    if not results:
        return "Nothing was measured yet."
    sections, device = [LEGEND], ""
    for result, path in results:
        if result.bench == "stream":
            # Files of older versions do not say it.
            add_memory_growth(result.rows)
        if result.about["device"] != device:
            device = result.about["device"]
            sections.append(f"## {device}")
        sections.append(_section(result, os.path.relpath(path, base)))
    return "\n\n".join(sections)


def _section(result: Result, file: str) -> str:
    chosen = [value for value in COLUMNS[result.bench] if value in result.columns()]
    lines = [
        f"**{result.title}** ({_about(result)}; [CSV]({file}))",
        "",
        f"| | | {' | '.join(map(figures.heading, chosen))} |",
        f"|---|---|{'---:|' * len(chosen)}",
    ]
    left_out = LEFT_OUT.get(result.bench, ())
    for task in result.tasks():
        rows = [row for row in result.rows if row.task == task and row.contestant not in left_out]
        lines += [_line(row, task if place == 0 else "", chosen) for place, row in enumerate(rows)]
    return "\n".join([*lines, *(f"\n*{note[:1].upper()}{note[1:]}.*" for note in result.notes)])


def _line(row: Row, task: str, chosen: Sequence[str]) -> str:
    name = f"**{row.contestant}**" if row.role == "ours" else row.contestant
    if row.role == "bound":
        name = f"*{row.contestant}*"
    cells = [figures.number(value, row.values[value]) if value in row.values else "" for value in chosen]
    return f"| {task} | {name} | {' | '.join(cells)} |"


def _about(result: Result) -> str:
    """Data set, versions, date, and the revision of the code where it is known."""
    told = about_line(result).split("; ", 1)[1]
    commit, _, changes = result.about["revision"].partition("+")
    if not commit:
        return told
    return f"{told}; revision {commit[:7]}{', with changes' if changes else ''}"


def records(folder: Path, base: Path) -> str:
    """Markdown of the cards under `folder`: the newest of each recipe, data set and device, a recipe's together."""
    groups = [(place, _cards(place)) for place in _places(folder)] if folder.is_dir() else []
    recipes: dict[tuple[str, str], dict[str, str]] = {}
    for place, cards in groups:
        if cards:
            devices = recipes.setdefault((cards[0]["dataset"], cards[0]["recipe"]), {})
            devices.setdefault(cards[0]["device"], _record_line(os.path.relpath(place, base), cards))
    if not recipes:
        return "No run is on record yet."
    head = "data set | recipe | epochs | parameters | device | runs | test accuracy | with TTA | training | wall clock"
    lines = [line for devices in recipes.values() for line in devices.values()]
    return "\n".join([f"| {head} |", "|---|---|---:|---:|---|---:|---:|---:|---:|---:|", *lines])


def _places(folder: Path) -> list[Path]:
    """The records' folders, whose names begin with the date: the newest first, of one day those of most runs."""

    def rank(path: Path) -> tuple[str, int, str]:
        return path.name.partition("_")[0], len(list(path.rglob("card.json"))), path.name

    return sorted((path for path in folder.iterdir() if path.is_dir()), key=rank, reverse=True)


def protocol(folder: Path) -> str:
    """Markdown of what the records under `folder` show: kind, test against the target, time as records count it, peers.

    A folder without a `record.json`, which `fastcifar record` writes, counts as runs without a target: a trial.
    """
    found = [(place, _cards(place)) for place in _places(folder)]
    lines = [f"| {' | '.join(_protocol_cells(place, cards))} |" for place, cards in found if cards]
    if not lines:
        return "No run is on record yet."
    head = (
        "record | data set | kind | runs | target | with TTA | p | as records count | wall clock | energy | beside it"
    )
    return "\n".join([f"| {head} |", "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---|", *lines])


def _protocol_cells(place: Path, cards: list[dict[str, Any]]) -> tuple[str, ...]:
    told = _json(place / "record.json")
    without = " (without)" if cards[0]["tta"] == "none" else ""
    name, dataset = f"[{place.name}]({place.name})", cards[0]["dataset"]
    if not told:
        counted_s = statistics.mean(card["seconds"]["train"] + card["seconds"]["evaluate"] for card in cards)
        wall_s = statistics.mean(card["seconds"]["total"] for card in cards)
        accuracy = _mean_percent([card["tta_accuracy"] for card in cards]) + without
        seconds = (f"{counted_s:,.1f} s", f"{wall_s:,.1f} s")
        return (name, dataset, "trial", str(len(cards)), "", accuracy, "", *seconds, "", "")
    p_value, energy = told["p_value"], told["energy_mean_j"]
    return (
        name,
        dataset,
        told["kind"],
        str(told["num_runs"]),
        f"{100 * told['target']:g} %",
        _with_deviation(told["tta_accuracy_mean"], told["tta_accuracy_deviation"]) + without,
        "" if p_value is None else f"{p_value:.2g}",
        f"{told['counted_mean_s']:,.1f} s",
        _wall(told),
        "" if energy is None else f"{energy:,.0f} J",
        _beside(place, told),
    )


def _beside(place: Path, told: dict[str, Any]) -> str:
    """Our time by that of the peer's runs that belong to the record's, where there are any."""
    path = place / "peer.json"
    if not path.is_file():
        return ""
    peers = Peers(**_json(path))
    # A record of before seeds were written down counts all of its peer's runs.
    peers = peers.of(told["seeds"]) if "seeds" in told else peers
    if not peers.runs:
        return ""
    return f"{told['counted_mean_s'] / peers.mean_s:.2f} of {peers.script}'s {peers.mean_s:,.1f} s"


def _wall(told: dict[str, Any]) -> str:
    if not told.get("first_is_cold"):
        return f"{told['wall_mean_s']:,.1f} s"
    warm = "" if told["wall_rest_s"] is None else f", warm {told['wall_rest_s']:,.1f} s"
    return f"cold {told['wall_first_s']:,.1f} s{warm}"


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content


CARD_KEYS = {
    "recipe",
    "dataset",
    "epochs",
    "num_parameters",
    "device",
    "dtype",
    "tta",
    "accuracy",
    "tta_accuracy",
    "seconds",
}


def _cards(folder: Path) -> list[dict[str, Any]]:
    """The cards as they were written: those of older versions have fewer keys, and need no more than these."""
    cards = []
    for path in sorted(folder.rglob("card.json")):
        card = json.loads(path.read_text(encoding="utf-8"))
        if missing := CARD_KEYS - set(card):
            raise ValueError(f"{path}: got a card without {', '.join(sorted(missing))}, takes one that a run wrote")
        cards.append(card)
    return cards


def _record_line(place: str, cards: list[dict[str, Any]]) -> str:
    first = cards[0]
    cells = (
        first["dataset"],
        f"[{first['recipe']}]({place})",
        f"{first['epochs']:g}",
        f"{first['num_parameters']:,}",
        f"{first['device']}, {first['dtype']}",
        str(len(cards)),
        _mean_percent([card["accuracy"] for card in cards]),
        "" if first["tta"] == "none" else _mean_percent([card["tta_accuracy"] for card in cards]),
        *(f"{statistics.mean(card['seconds'][part] for card in cards):,.1f} s" for part in ("train", "total")),
    )
    return f"| {' | '.join(cells)} |"


def _mean_percent(shares: list[float]) -> str:
    return _with_deviation(*mean_and_deviation(shares))


def _with_deviation(mean: float, deviation: float | None) -> str:
    return percent(mean) + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def replace_between(text: str, marker: str, content: str, where: str) -> str:
    """Put `content` between `<!-- marker -->` and `<!-- /marker -->`. `ValueError` unless each is there once."""
    begin, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"{where}: takes one {begin} and one {end} after it")
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    # By a function, so that backslashes in the content stay what they are.
    return pattern.sub(lambda _: f"{begin}\n{content}\n{end}", text)


def update(readme: Path, results: Path, record_folder: Path) -> bool:
    """Write tables into `readme`, and into the `README.md` of both folders if any; whether that changed anything.

    Between `<!-- summary -->` marks goes the measurements' summary, between `<!-- measurements -->` all of them,
    between `<!-- results -->` what the records reached, between `<!-- records -->` how. `ValueError` where `readme` has
    none of them but the last.
    """
    if not any(_has(readme, marker) for marker in ("summary", "measurements", "results")):
        raise ValueError(f"{readme}: takes one <!-- measurements --> and one <!-- /measurements --> after it")
    others = (folder / "README.md" for folder in (results, record_folder))
    # A list: all are written, whatever was changed before.
    return any([_fill(file, results, record_folder) for file in (readme, *others) if file.is_file()])


def _has(file: Path, marker: str) -> bool:
    return f"<!-- {marker} -->" in file.read_text(encoding="utf-8")


def _fill(file: Path, results: Path, record_folder: Path) -> bool:
    tables: dict[str, Callable[[], str]] = {
        "summary": lambda: summary(results),
        "measurements": lambda: measurements(results, file.parent),
        "results": lambda: records(record_folder, file.parent),
        "records": lambda: protocol(record_folder),
    }
    before = after = file.read_text(encoding="utf-8")
    for marker, table in tables.items():
        if _has(file, marker):
            after = replace_between(after, marker, table(), str(file))
    if after != before:
        file.write_text(after, encoding="utf-8")
    return after != before
