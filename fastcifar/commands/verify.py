"""`fastcifar verify`: whether an artefact is what its index says, and what its source holds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastcifar.commands import Option


@dataclass(frozen=True)
class Args:
    """Settings of `fastcifar verify`."""

    artefact: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="ARTEFACT")]
    """Folder that `fastcifar convert` wrote."""
    against: Option[Path] = None
    """What to compare each image and label with: CIFAR folder, its .tar.gz, another artefact, or a set's name."""


def run(args: Args) -> int:
    """Print one line a check; exit code 1 where one failed."""
    from fastcifar import artefacts
    from fastcifar.artefacts import sources
    from fastcifar.artefacts.index import has_index

    if not has_index(args.artefact):
        artefacts.read_index(args.artefact)  # says why: no artefact is a wrong setting, a damaged one a failed check
    against = sources.find(args.against).load() if args.against is not None else None
    findings = artefacts.verify(args.artefact, against)
    for finding in findings:
        print(f"{'ok    ' if finding.passed else 'FAILED'}  {finding.check}: {finding.detail}")
    num_failed = sum(not finding.passed for finding in findings)
    print(f"{args.artefact}: {num_failed} of {len(findings)} checks failed")
    return 1 if num_failed else 0
