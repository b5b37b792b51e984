"""What is fuzzed: every reader of a file that may come from elsewhere, each with good files to start from.

A target turns an input's bytes into files in its own scratch folder, reads them, and raises whatever the reader raises;
`AssertionError` where an answer is wrong. The first byte of an input says how the rest is meant: as the file itself, or
as edits of a good one (see `edits`), with checksums made right again so that the code behind them is reached.
A new reader is fuzzed when its class stands in `TARGETS`.
"""

from faults.targets.converted import ArtefactDali, ArtefactFfcv, ArtefactNpy, Index, PipelineDali, PipelineFfcv
from faults.targets.pictures import Cifar100, CifarBinary, CifarPython, Submission, Tar, Unpickle
from faults.targets.runs import Checkpoint, Recipe, Run, Weights
from faults.targets.target import Target

__all__ = ["TARGETS", "Target", "Unpickle"]

TARGETS: tuple[type[Target], ...] = (
    Unpickle, CifarPython, CifarBinary, Cifar100, Tar, Index, ArtefactNpy, ArtefactFfcv, ArtefactDali, Recipe, Run,
    Submission, Weights, Checkpoint, PipelineFfcv, PipelineDali,
)  # fmt: skip
