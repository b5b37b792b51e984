"""Records: n runs of one recipe, what they reached, whether that meets a target, and what they took."""

import hashlib
import json
import statistics
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fastcifar import config as configs
from fastcifar.atomic import write_atomically
from fastcifar.report.card import mean_and_deviation, with_tta
from fastcifar.report.reading import json_object
from fastcifar.report.run_folder import RunFolder
from fastcifar.schema import Config

MIN_RUNS, MAX_P = 10, 0.01
_ALIKE = ("recipe", "dataset", "device", "dtype", "tta", "epochs", "batch_size")
_PEERS_HOLD = {"script": "text", "sha256": "text", "dataset": "text", "runs": "a JSON object"}
KEPT = ("config.toml", "metrics.jsonl", "environment.json", "card.json")


@dataclass(frozen=True)
class Record:
    """Runs of one recipe taken together. Accuracies are shares of the test set, read once a run."""

    kind: str
    """record (10 runs or more whose mean meets the target by the test), missed, or trial (fewer runs)."""
    recipe: str
    dataset: str
    device: str
    num_runs: int
    seeds: tuple[int, ...]
    target: float
    tta: str
    accuracy_mean: float
    accuracy_deviation: float | None
    tta_accuracy_mean: float
    tta_accuracy_deviation: float | None
    p_value: float | None
    """Of a one-sided t-test: how likely such accuracies with TTA are, were the true mean the target or less."""
    counted_mean_s: float
    """Training and final evaluation, as the published records count."""
    wall_mean_s: float
    """All that a user waits for: loading, converting, compiling and warm-up too."""
    wall_first_s: float
    """Of the first run."""
    wall_rest_s: float | None
    """Mean of the others, whose caches were warm."""
    first_is_cold: bool
    """Whether the first run began with empty caches."""
    energy_mean_j: float | None
    """Of a run, where the device tells it."""
    revisions: tuple[str, ...]
    """Of the code, all that a run or a part of it was of."""

    @property
    def sentence(self) -> str:
        """The record in one line."""
        spread = "" if self.tta_accuracy_deviation is None else f" +- {100 * self.tta_accuracy_deviation:.2f}"
        p = "" if self.p_value is None else f", p = {self.p_value:.2g}"
        return (
            f"{self.kind}: {self.num_runs} runs of {self.recipe} on {self.dataset}, {self.device}: "
            f"{100 * self.tta_accuracy_mean:.2f} %{spread} {with_tta(self.tta)}, target {100 * self.target:g} %{p}; "
            f"{self.counted_mean_s:,.1f} s of training and evaluation, {self.wall} on the clock"
            + (f"; by {len(self.revisions)} revisions of the code" if len(self.revisions) > 1 else "")
        )

    @property
    def wall(self) -> str:
        """The wall clock's mean, or what it is with empty caches beside what it is with warm ones."""
        if not self.first_is_cold:
            return f"{self.wall_mean_s:,.1f} s"
        warm = "" if self.wall_rest_s is None else f", {self.wall_rest_s:,.1f} s with warm ones"
        return f"{self.wall_first_s:,.1f} s with empty caches{warm}"


def take_together(cards: Sequence[dict[str, Any]], target: float, environments: Sequence[dict[str, Any]]) -> Record:
    """The record of runs' cards, and of what `keep` wrote of each one's surroundings.

    `ValueError` where they are not of one recipe, data set and device.
    """
    for name in _ALIKE:
        found = sorted({str(card[name]) for card in cards})
        if len(found) != 1:
            raise ValueError(f"a record takes runs of one {name}, got {found}: others take another --name")
    processes = [one for about in environments for one in (about, *about.get("before", []))]
    accuracies = [card["tta_accuracy"] for card in cards]
    plain_mean, plain_deviation = mean_and_deviation([card["accuracy"] for card in cards])
    tta_mean, tta_deviation = mean_and_deviation(accuracies)
    p_value = _p_value(accuracies, target)
    kind = "trial"
    if len(cards) >= MIN_RUNS:
        kind = "record" if p_value is not None and p_value < MAX_P else "missed"
    walls_s = [card["seconds"]["total"] for card in cards]
    energies = [card["energy_j"] for card in cards if card.get("energy_j") is not None]
    return Record(
        kind=kind,
        recipe=cards[0]["recipe"],
        dataset=cards[0]["dataset"],
        device=cards[0]["device"],
        num_runs=len(cards),
        seeds=tuple(card["seed"] for card in cards),
        target=target,
        tta=cards[0]["tta"],
        accuracy_mean=plain_mean,
        accuracy_deviation=plain_deviation,
        tta_accuracy_mean=tta_mean,
        tta_accuracy_deviation=tta_deviation,
        p_value=p_value,
        counted_mean_s=statistics.mean(card["seconds"]["train"] + card["seconds"]["evaluate"] for card in cards),
        wall_mean_s=statistics.mean(walls_s),
        wall_first_s=walls_s[0],
        wall_rest_s=statistics.mean(walls_s[1:]) if walls_s[1:] else None,
        first_is_cold=environments[0].get("empty_caches", False),
        energy_mean_j=statistics.mean(energies) if len(energies) == len(cards) else None,
        revisions=tuple(sorted({one["revision"] for one in processes if "revision" in one})),
    )


def check_settings(folder: RunFolder, config: Config) -> None:
    """`ValueError` names the settings in which an earlier run of a record differs from `config`, that of its next."""
    told = configs.differences(_without_paths(folder.read_config()), _without_paths(config))
    if changed := [sentence for name, sentence in told.items() if name != "seed"]:
        raise ValueError(
            f"{folder.path}: a record takes runs of one configuration: {'; '.join(changed)}; "
            "other settings take another --name"
        )


def keep(run: Path, place: Path, is_cold: bool = False) -> None:
    """Copy what a record keeps of a run's folder to `place`, without paths on this machine.

    `is_cold` says that it began with empty caches.
    """
    place.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        text = (run / name).read_text(encoding="utf-8")
        if name == "config.toml":
            text = configs.dumps(_without_paths(RunFolder(run).read_config()))
        elif name == "environment.json":
            about = _without_commands(json.loads(text))
            text = json.dumps({**about, "empty_caches": is_cold}, indent=2) + "\n"
        elif name == "card.json":
            card = json.loads(text)
            card |= {"run": place.name, "source": Path(card["source"]).name}
            text = json.dumps(card, indent=2) + "\n"
        write_atomically(place / name, text.encode())


def _without_commands(about: dict[str, Any]) -> dict[str, Any]:
    """Of a process and of those before it, what says nothing of this machine's paths."""
    kept = {key: value for key, value in about.items() if key != "command"}
    return kept | {"before": [_without_commands(one) for one in about["before"]]} if "before" in about else kept


def _without_paths(config: Config) -> Config:
    """The configuration without where things lie on this machine; of other runs their folders' names stay."""
    return replace(
        config,
        data=replace(config.data, path=""),
        train=replace(config.train, start_from=Path(config.train.start_from).name),
        distill=replace(config.distill, teacher=Path(config.distill.teacher).name),
    )


def write(place: Path, record: Record) -> None:
    """Write the record beside its runs."""
    write_atomically(place / "record.json", (json.dumps(asdict(record), indent=2) + "\n").encode())


@dataclass(frozen=True)
class Peers:
    """Runs of somebody else's script on the same device, one before each of a record's."""

    script: str
    sha256: str
    """Of the script: which version it was."""
    dataset: str
    runs: dict[str, dict[str, float]]
    """By the seed of our run that each belongs to: accuracy (share, with TTA, as the script evaluates), and seconds by
    the script's own clock."""

    def of(self, seeds: Collection[int]) -> "Peers":
        """Those of the runs that belong to our runs of these seeds."""
        wanted = {str(seed) for seed in seeds}
        return replace(self, runs={seed: run for seed, run in self.runs.items() if seed in wanted})

    @property
    def accuracy_mean(self) -> float:
        """Share of the test set."""
        return statistics.mean(run["accuracy"] for run in self.runs.values())

    @property
    def mean_s(self) -> float:
        """Training and final evaluation."""
        return statistics.mean(run["seconds"] for run in self.runs.values())

    def sentence(self, record: Record) -> str:
        """The comparison in one line."""
        return (
            f"beside it: {self.script}, {len(self.runs)} runs: {100 * self.accuracy_mean:.2f} % on {self.dataset} "
            f"with TTA, {self.mean_s:,.1f} s; ours takes {record.counted_mean_s / self.mean_s:.2f} of its time"
        )


def read_peers(place: Path, script: Path, dataset: str) -> Peers:
    """The peer's runs that a record has so far. `ValueError` where they are of another script."""
    sha256 = hashlib.sha256(script.read_bytes()).hexdigest()
    path = place / "peer.json"
    if not path.is_file():
        return Peers(script.name, sha256, dataset, {})
    text = path.read_text(encoding="utf-8", errors="replace")
    held = json_object(str(path), text, _PEERS_HOLD)
    kept = Peers(**{name: held[name] for name in _PEERS_HOLD})
    if kept.sha256 != sha256:
        raise ValueError(
            f"--peer: got {script}, {path} holds runs of another version of {kept.script}: takes a new --name"
        )
    return kept


def write_peers(place: Path, peers: Peers) -> None:
    """Write the peer's runs beside a record's."""
    place.mkdir(parents=True, exist_ok=True)
    write_atomically(place / "peer.json", (json.dumps(asdict(peers), indent=2) + "\n").encode())


def _p_value(accuracies: Sequence[float], target: float) -> float | None:
    """None where the runs are too few, or too alike, for a t-test."""
    if len(accuracies) < 2 or statistics.stdev(accuracies) == 0:
        return None
    from scipy import stats

    return float(stats.ttest_1samp(accuracies, target, alternative="greater").pvalue)
