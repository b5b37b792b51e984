"""`fastcifar record`: many runs of one recipe, and whether they meet a target."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from fastcifar.data import Source
    from fastcifar.peers import Peer
    from fastcifar.report.progress import Reporter
    from fastcifar.training.clock import Clock


@dataclass(frozen=True)
class Args:
    """Settings of `fastcifar record`."""

    target: float = 94.0
    """Test accuracy with TTA in percent that the mean is to meet."""
    runs: int = 10
    """Runs, with seeds seed, seed + 1, ...; fewer than 10 are a trial. Those that are there already are kept."""
    seed: int = 0
    """Seed of the first run."""
    recipe: str | None = None
    """Name of a recipe or path of a TOML file; by default that of `fastcifar speedrun --target`."""
    data: Path | None = None
    """CIFAR folder or .tar.gz."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = field(default=())
    """section.key=value on top of the recipe; may be given again and again."""
    peer: Path | None = None
    """A record script of somebody else's (of airbench's kind), run on this device before each of ours."""
    out: Path = Path("bench/records")
    """Folder of the records; a new one is written into it, named by date, target and device."""
    name: str | None = None
    """The record's name in it; an earlier one's goes on with that."""


def run(args: Args) -> int:
    """Train, test and write the record down; its JSON is the last line."""
    if args.runs < 1:
        raise ValueError(f"--runs: got {args.runs}, takes a whole number above 0")
    if not 0 < args.target < 100:
        raise ValueError(f"--target: got {args.target}, takes a percentage")
    import json
    import time
    from contextlib import ExitStack
    from dataclasses import asdict

    from fastcifar import config as configs
    from fastcifar.peers import Peer
    from fastcifar.report import record
    from fastcifar.report.progress import Reporter
    from fastcifar.report.run_folder import RunFolder
    from fastcifar.training.clock import Clock
    from fastcifar.training.device import describe, pick_device
    from fastcifar.training.session import find_data

    base = configs.load(_recipe(args), _settings(args, args.seed))
    name = args.name or f"{time.strftime('%Y%m%d')}_{args.target:g}_{_slug(describe(pick_device()))}"
    place = args.out / name
    clock = Clock()
    seeds = range(args.seed, args.seed + args.runs)
    with ExitStack() as stack:
        # A script that is not there is said before anything is trained.
        peer = stack.enter_context(Peer(args.peer)) if args.peer else None
        peers = record.read_peers(place, args.peer) if args.peer else None
        reporter = stack.enter_context(Reporter())
        source = find_data(base.data, clock, reporter)
        if peer is not None:
            _lay_out(peer, source, clock)
        for seed in seeds:
            if peer is not None and peers is not None and str(seed) not in peers.runs:
                with clock.paused():
                    peers.runs[str(seed)] = asdict(peer.run())
                record.write_peers(place, peers)
            kept = place / f"seed{seed}"
            if (kept / "card.json").is_file():
                reporter.line(f"{kept}: there already")
            else:
                _train(args, seed, source, kept, clock, reporter)
                clock = Clock(since_process_start=False)
        folders = [RunFolder.open(place / f"seed{seed}") for seed in seeds]
        energies_j = [json.loads(one.environment.read_text(encoding="utf-8")).get("energy_j") for one in folders]
        result = record.take_together([one.read_card() or {} for one in folders], args.target / 100, energies_j)
        record.write(place, result)
        reporter.line(f"{place}: {result.sentence}")
        told = {}
        if peers is not None:
            reporter.line(peers.sentence(result))
            told = {"peer": {**asdict(peers), "time_ratio": result.counted_mean_s / peers.mean_s}}
    print(json.dumps({**asdict(result), **told, "folder": str(place)}))
    return 0


def _lay_out(peer: "Peer", source: "Source", clock: "Clock") -> None:
    from fastcifar import artefacts

    with clock.part("convert"):
        artefact = artefacts.cached(source, "npy")
    with clock.paused():
        peer.lay_out(artefact)


def _train(args: Args, seed: int, source: "Source", kept: Path, clock: "Clock", reporter: "Reporter") -> None:
    """One run, of which `kept` keeps what a record does."""
    import tempfile

    from fastcifar import config as configs
    from fastcifar.report import energy, record
    from fastcifar.report.card import render
    from fastcifar.report.run_folder import RunFolder
    from fastcifar.training.run import run as train
    from fastcifar.training.session import resolve

    config = resolve(configs.load(_recipe(args), _settings(args, seed)), source)
    with tempfile.TemporaryDirectory(prefix="fastcifar-record-") as scratch:
        folder = RunFolder.create(Path(scratch) / kept.name, config)
        before_j = energy.used_j()
        card = train(config, source, folder, clock, reporter)
        after_j = energy.used_j()
        used_j = None if before_j is None or after_j is None or after_j < before_j else after_j - before_j
        record.keep(folder.path, kept, used_j)
    reporter.console.print(render(card))


def _recipe(args: Args) -> str:
    from fastcifar.commands.speedrun import RECIPES

    return args.recipe or RECIPES.get(round(args.target), "speedrun")


def _settings(args: Args, seed: int) -> list[str]:
    from fastcifar.config import quoted

    path = [] if args.data is None else [f"data.path={quoted(args.data)}"]
    return [*path, f"seed={seed}", f"target={args.target}", *args.set]


def _slug(device: str) -> str:
    import re

    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
