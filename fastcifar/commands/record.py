"""`fastcifar record`: many runs of one recipe, and whether they meet a target."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from fastcifar.commands import Option

if TYPE_CHECKING:
    from fastcifar.artefacts import Source
    from fastcifar.peers import Peer
    from fastcifar.report.progress import Reporter
    from fastcifar.report.run_folder import RunFolder
    from fastcifar.schema import Config
    from fastcifar.training.clock import Clock


@dataclass(frozen=True)
class Args:
    """Settings of `fastcifar record`."""

    target: float = 94.0
    """Test accuracy with TTA in percent that the mean is to meet; 94, 95, 96 or 97, any with --recipe."""
    runs: int = 10
    """Runs, with seeds seed, seed + 1, ...; fewer than 10 are a trial. Those that are there already are kept."""
    seed: int = 0
    """Seed of the first run."""
    recipe: Option[str] = None
    """Name of a recipe or path of a TOML file; by default that of `fastcifar speedrun --target`."""
    data: Option[Path] = None
    """CIFAR folder, its .tar.gz or a folder with one; else the recipe's, $FASTCIFAR_DATA, ./data, cache, a download."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = field(default=())
    """section.key=value on top of the recipe, such as data.dataset=cifar100, pipeline.name=ffcv; may be given again."""
    cold: bool = False
    """Begin with empty caches of artefacts and compiled code: the first run's wall clock is that of a new machine."""
    peer: Option[Path] = None
    """A record script of somebody else's (of airbench's kind), run on this device before each of ours."""
    out: Path = Path("bench/records")
    """Folder of the records; a new one is written into it, named by date, target, what --recipe names, and device."""
    name: Option[str] = None
    """Name of the record's folder under --out; that of an earlier record goes on with it."""


def run(args: Args) -> int:
    """Train, test and write the record down; its JSON is the last line. `InterruptedRunError` says how to go on."""
    if args.runs < 1:
        raise ValueError(f"--runs: got {args.runs}, takes a whole number above 0")
    if not 0 < args.target < 100:
        raise ValueError(f"--target: got {args.target}, takes a percentage")
    import json
    import time
    from dataclasses import replace

    from fastcifar import config as configs
    from fastcifar.interruption import InterruptedRunError
    from fastcifar.training.clock import Clock
    from fastcifar.training.device import describe, pick_device

    clock = Clock()
    config = configs.load(_recipe(args), _settings(args, args.seed))  # what is wrong is said before there is a place
    # Tomorrow the name would be another one: what goes on is told this one.
    recipe = [config.name] if args.recipe else []
    about = f"{args.target:g}", *map(_slug, (*recipe, describe(pick_device())))
    name = args.name or "_".join((time.strftime("%Y%m%d"), *about))
    args = replace(args, name=name)
    place = args.out / name
    try:
        with _cold_caches(place, args.seed) if args.cold else nullcontext() as caches:
            told = _record(args, place, caches, clock)
    except (InterruptedRunError, KeyboardInterrupt) as error:
        code = getattr(error, "exit_code", 130)
        message = f"stopped, what was done is kept in {place}; go on with: {_command(args)}"
        raise InterruptedRunError(message, code) from error
    print(json.dumps({**told, "folder": str(place)}))
    return 0


def _record(args: Args, place: Path, caches: Path | None, clock: "Clock") -> dict[str, Any]:
    """All of it; the record as plain values, with the peer's runs where there is one.

    `caches`: those of a cold record, in place of the user's.
    """
    import json
    import os
    from contextlib import ExitStack
    from dataclasses import asdict

    from fastcifar.peers import Peer
    from fastcifar.report import record
    from fastcifar.report.progress import Reporter
    from fastcifar.report.run_folder import RunFolder
    from fastcifar.training.clock import Clock

    seeds = range(args.seed, args.seed + args.runs)
    with ExitStack() as stack:
        # A script that is not there is said before anything is trained.
        peer = stack.enter_context(Peer(args.peer)) if args.peer else None
        reporter = stack.enter_context(Reporter())
        source, wanted = _plan(args, place, clock, reporter)
        peers = record.read_peers(place, args.peer, source.dataset) if args.peer else None
        # Found, so that the user's own cache, where a data set may lie, is not asked any more.
        first_is_cold = args.cold and not _is_kept(place, args.seed)
        if caches is not None:
            os.environ["XDG_CACHE_HOME"] = str(caches)
        if peer is not None:
            _lay_out(peer, source, clock)
        for seed in seeds:
            if peer is not None and peers is not None and str(seed) not in peers.runs:
                with clock.paused():
                    peers.runs[str(seed)] = asdict(peer.run())
                record.write_peers(place, peers)
            is_cold = first_is_cold and seed == args.seed
            if _train(wanted[seed], source, place, clock, reporter, is_cold):
                clock = Clock(since_process_start=False)
        folders = [RunFolder.open(_kept(place, seed)) for seed in seeds]
        environments = [json.loads(one.environment.read_text(encoding="utf-8")) for one in folders]
        result = record.take_together([one.read_card() or {} for one in folders], args.target / 100, environments)
        record.write(place, result)
        reporter.line(f"{place}: {result.sentence}")
        told = asdict(result)
        if peers is not None:
            beside = peers.of(seeds)
            reporter.line(beside.sentence(result))
            told["peer"] = {**asdict(beside), "time_ratio": result.counted_mean_s / beside.mean_s}
        _refresh_tables(args.out, reporter)
    return told


def _plan(args: Args, place: Path, clock: "Clock", reporter: "Reporter") -> "tuple[Source, dict[int, Config]]":
    """The data set, and the configuration of each seed's run.

    `ValueError`, before anything is trained, where a run that is there already, or has begun, is of other settings.
    """
    from fastcifar import config as configs
    from fastcifar.report import record
    from fastcifar.report.run_folder import RunFolder
    from fastcifar.training.session import find_data, resolve

    seeds = range(args.seed, args.seed + args.runs)
    loaded = {seed: configs.load(_recipe(args), _settings(args, seed)) for seed in seeds}
    if any(config.seed != seed for seed, config in loaded.items()):
        raise ValueError("--set seed: record takes the first run's by --seed")
    source = find_data(loaded[args.seed].data, clock, reporter)
    wanted = {seed: resolve(config, source) for seed, config in loaded.items()}
    for seed, config in wanted.items():
        kept, part = RunFolder(_kept(place, seed)), RunFolder(_part(place, seed))
        if _is_kept(place, seed):
            record.check_settings(RunFolder.open(kept.path), config)
        elif _can_go_on(part):
            record.check_settings(part, config)
    return source, wanted


def _kept(place: Path, seed: int) -> Path:
    return place / f"seed{seed}"


def _is_kept(place: Path, seed: int) -> bool:
    return (_kept(place, seed) / "card.json").is_file()


def _part(place: Path, seed: int) -> Path:
    """Where a run is until it is over."""
    return place / f".seed{seed}.part"


def _can_go_on(part: "RunFolder") -> bool:
    """Whether a run has a checkpoint to go on from, or is finished and yet to be kept."""
    from fastcifar.training.checkpoints import checkpoint_paths

    return part.config.is_file() and (part.card.is_file() or bool(checkpoint_paths(part.checkpoints)))


def _lay_out(peer: "Peer", source: "Source", clock: "Clock") -> None:
    from fastcifar import artefacts

    with clock.part("convert"):
        artefact = artefacts.cached(source, "npy")
    with clock.paused():
        peer.lay_out(artefact)


def _train(
    config: "Config", source: "Source", place: Path, clock: "Clock", reporter: "Reporter", is_cold: bool
) -> bool:
    """One run, from its last checkpoint where it has begun, of which `place` keeps what a record does.

    Whether there was anything to do. Whatever ends the run before its time, its folder stays, for the next process.
    """
    import shutil
    from dataclasses import replace

    from fastcifar.report import record
    from fastcifar.report.card import Card, render
    from fastcifar.training.run import run as train

    kept, part = _kept(place, config.seed), _part(place, config.seed)
    if _is_kept(place, config.seed):
        # A process may have died between keeping a run and removing its folder.
        shutil.rmtree(part, ignore_errors=True)
        reporter.line(f"{kept}: there already")
        return False
    folder, resume = _claim(part, config)
    try:
        # A process may have died between the card and keeping it: the test set is read once.
        card = (Card.of(folder) if resume else None) or train(config, source, folder, clock, reporter, resume=resume)
        record.keep(folder.path, kept, is_cold)
        shutil.rmtree(part)
    finally:
        folder.release()
    reporter.console.print(render(replace(card, run=str(kept))))
    return True


def _claim(part: Path, config: "Config") -> "tuple[RunFolder, bool]":
    """The folder of a run, claimed, and whether it has begun."""
    from fastcifar import config as configs
    from fastcifar.atomic import write_atomically
    from fastcifar.report.run_folder import RunFolder

    if not (part / "config.toml").is_file():
        folder = RunFolder.create(part, config)
        # Checkpoints have no place beside the records that a checkout keeps.
        write_atomically(part / ".gitignore", b"*\n")
        return folder, False
    folder = RunFolder.open(part, claim=True)
    if not _can_go_on(folder):
        # It begins anew: nothing ties it to earlier settings.
        write_atomically(folder.config, configs.dumps(config).encode())
    return folder, True


def _refresh_tables(records: Path, reporter: "Reporter") -> None:
    """Write the tables of a checkout anew where `records` is its folder of records; nothing elsewhere."""
    from fastcifar.bench import readme

    records = records.resolve()
    root = records.parent.parent
    file, results = root / "README.md", root / "bench" / "results"
    if records != root / "bench" / "records" or not file.is_file() or not results.is_dir():
        return
    try:
        changed = readme.update(file, results, records)
    except (ValueError, OSError) as error:  # of another record or result: this one is written all the same
        reporter.line(f"{file}: not refreshed: {error}")
    else:
        reporter.line(f"{file}: {'written' if changed else 'is up to date'}")


@contextmanager
def _cold_caches(place: Path, first_seed: int) -> Iterator[Path | None]:
    """The record's own folder for what is compiled, by all that compile, as long as the body runs.

    It is empty where the first run is yet to begin, and stays until all runs are over: a process that goes on finds
    what the one before it left. None, and the user's own caches, where the first run is over and it is gone.
    """
    import os
    import shutil

    from fastcifar.report.run_folder import RunFolder

    caches = (place / ".caches").resolve()
    if _is_kept(place, first_seed) and not caches.is_dir():
        yield None
        return
    if not _is_kept(place, first_seed) and not _can_go_on(RunFolder(_part(place, first_seed))):
        shutil.rmtree(caches, ignore_errors=True)
    names = ("NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "XDG_CACHE_HOME")
    before = {name: os.environ.get(name) for name in names}
    # Numba reads where its cache is when it is imported: nothing before this may import it.
    os.environ |= dict.fromkeys(names[:3], str(caches))
    try:
        yield caches
        shutil.rmtree(caches, ignore_errors=True)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _command(args: Args) -> str:
    """The command line that says the same as `args`."""
    import shlex
    from dataclasses import fields

    words = ["fastcifar", "record"]
    for each in fields(args):
        value = getattr(args, each.name)
        if value is True:
            words.append(f"--{each.name}")
        elif value != each.default:
            for one in value if isinstance(value, tuple) else (value,):
                words += [f"--{each.name}", str(one)]
    return shlex.join(words)


def _recipe(args: Args) -> str:
    from fastcifar.commands.speedrun import RECIPES

    if args.recipe is None and args.target not in RECIPES:
        choices = ", ".join(map(str, RECIPES))
        raise ValueError(f"--target: got {args.target:g}, takes one of {choices}, or any with --recipe")
    return args.recipe or RECIPES[int(args.target)]


def _settings(args: Args, seed: int) -> list[str]:
    from fastcifar.config import quoted

    path = [] if args.data is None else [f"data.path={quoted(args.data)}"]
    return [*path, f"seed={seed}", f"target={args.target}", *args.set]


def _slug(text: str) -> str:
    import re

    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
