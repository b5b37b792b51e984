"""`fastcifar record`: many runs of one recipe, and whether they meet a target."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Args:
    """Settings of `fastcifar record`."""

    target: float = 94.0
    """Test accuracy with TTA in percent that the mean is to meet."""
    runs: int = 10
    """Runs, with seeds seed, seed + 1, ...; fewer than 10 are a trial. Those that are there already are kept."""
    seed: int = 0
    """Seed of the first run."""
    recipe: str = "speedrun"
    """Name of a recipe or path of a TOML file."""
    data: Path | None = None
    """CIFAR folder or .tar.gz."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = field(default=())
    """section.key=value on top of the recipe; may be given again and again."""
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
    import tempfile
    import time
    from dataclasses import asdict

    from fastcifar import config as configs
    from fastcifar.report import energy, record
    from fastcifar.report.card import render
    from fastcifar.report.progress import Reporter
    from fastcifar.report.run_folder import RunFolder
    from fastcifar.training.clock import Clock
    from fastcifar.training.device import describe, pick_device
    from fastcifar.training.run import run as train
    from fastcifar.training.session import find_data, resolve

    target = args.target / 100
    base = configs.load(args.recipe, _settings(args, args.seed))
    name = args.name or f"{time.strftime('%Y%m%d')}_{args.target:g}_{_slug(describe(pick_device()))}"
    place = args.out / name
    clock = Clock()
    with Reporter() as reporter, tempfile.TemporaryDirectory(prefix="fastcifar-record-") as scratch:
        source = find_data(base.data, clock, reporter)
        for seed in range(args.seed, args.seed + args.runs):
            kept = place / f"seed{seed}"
            if (kept / "card.json").is_file():
                reporter.line(f"{kept}: there already")
                continue
            config = resolve(configs.load(args.recipe, _settings(args, seed)), source)
            folder = RunFolder.create(Path(scratch) / f"seed{seed}", config)
            before_j = energy.used_j()
            card = train(config, source, folder, clock, reporter, target=target)
            after_j = energy.used_j()
            used_j = None if before_j is None or after_j is None or after_j < before_j else after_j - before_j
            record.keep(folder.path, kept, used_j)
            reporter.console.print(render(card))
            clock = Clock(since_process_start=False)
        cards, energies_j = [], []
        for seed in range(args.seed, args.seed + args.runs):
            one = RunFolder.open(place / f"seed{seed}")
            cards.append(one.read_card() or {})
            energies_j.append(json.loads(one.environment.read_text(encoding="utf-8")).get("energy_j"))
        result = record.take_together(cards, target, energies_j)
        record.write(place, result)
        reporter.line(f"{place}: {result.sentence}")
    print(json.dumps({**asdict(result), "folder": str(place)}))
    return 0


def _settings(args: Args, seed: int) -> list[str]:
    data = [] if args.data is None else [f"data.path='{args.data}'"]
    return [*data, f"seed={seed}", *args.set]


def _slug(device: str) -> str:
    import re

    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
