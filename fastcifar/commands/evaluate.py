"""`fastcifar evaluate`: score a finished run."""

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Args:
    """Settings of `fastcifar evaluate`."""

    run: tyro.conf.Positional[Path]
    """Folder of a finished run."""
    data: Path | None = None
    """CIFAR folder or .tar.gz, where it is no longer where the run found it."""


def run(args: Args) -> int:
    """Print the run's test accuracy with and without TTA; JSON is the last line."""
    import json

    from fastcifar.report.card import percent
    from fastcifar.report.progress import Reporter
    from fastcifar.report.run_folder import RunFolder
    from fastcifar.training.clock import Clock
    from fastcifar.training.run import evaluate

    folder = RunFolder.open(args.run)
    config = folder.read_config()
    with Reporter() as reporter:
        predictions, dataset = evaluate(folder, str(args.data or ""), Clock(), reporter)
    result = {
        "run": str(folder.path),
        "dataset": dataset,
        "num_test": len(predictions.labels),
        "tta": config.evaluate.tta,
        "accuracy": predictions.accuracy,
        "tta_accuracy": predictions.tta_accuracy,
        "test_loss": predictions.loss,
    }
    tta = (
        f", {percent(predictions.tta_accuracy)} with TTA ({config.evaluate.tta})"
        if config.evaluate.tta != "none"
        else ""
    )
    print(f"{folder.path}: {percent(predictions.accuracy)} of {len(predictions.labels):,} {dataset} test images{tta}")
    print(json.dumps(result))
    return 0
