"""A finished run's network, ready to look at images."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastcifar import artefacts, pipelines
from fastcifar.data import Split
from fastcifar.kernels import Normalisation
from fastcifar.report.progress import Reporter
from fastcifar.report.run_folder import RunFolder
from fastcifar.schema import Config
from fastcifar.training import checkpoints
from fastcifar.training.clock import Clock
from fastcifar.training.device import set_up
from fastcifar.training.evaluation import Predictions, predict
from fastcifar.training.memory import told_of_memory
from fastcifar.training.session import build_network, find_data, to_device


@dataclass(frozen=True)
class Finished:
    """The network of a run folder, and what it takes an image to be."""

    folder: RunFolder
    config: Config
    network: nn.Module
    dataset: str
    """Name of the data set that it was trained on."""
    class_names: tuple[str, ...]
    normalisation: Normalisation
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def load(cls, folder: RunFolder, *, best: bool = False) -> "Finished":
        """The network of `folder`, in evaluation mode, on the device; `best`: of the best validated epoch.

        The weights say what they are for, so that no data set need be there. `ValueError` where there are none, or they
        do not fit.
        """
        config = folder.read_config()
        device, dtype = set_up(config.train)
        weights = folder.best if best else folder.weights
        if best and not weights.is_file():
            raise ValueError(f"--best: {weights} is not there; only runs with data.validation keep their best weights")
        if not weights.is_file():
            advice = f"fastcifar train --resume {folder.path}"
            raise ValueError(f"{weights}: no such file; where the run is not finished, go on with: {advice}")
        about = about_weights(weights)
        network = build_network(config.model, len(about["class_names"]))
        checkpoints.load_weights(weights, network)
        to_device(network, device)
        return cls(
            folder=folder,
            config=config,
            network=network.eval(),
            dataset=about["dataset"],
            class_names=tuple(about["class_names"]),
            normalisation=Normalisation(tuple(about["mean"]), tuple(about["std"])),  # type: ignore[arg-type]
            device=device,
            dtype=dtype,
        )

    def predictions(
        self, images_nhwc: np.ndarray, labels_n: np.ndarray | None = None, tta: str = "none"
    ) -> Predictions:
        """Predictions for uint8 images [n, h, w, 3], in order; labels int64 [n] are 0 where there are none."""
        labels_n = np.zeros(len(images_nhwc), np.int64) if labels_n is None else labels_n
        batch_size = self.config.evaluate.batch_size
        why = f"with evaluate.batch_size {batch_size}; {self.folder.config} holds it: less takes less"
        with (
            told_of_memory(why, self.device),
            pipelines.open(
                (images_nhwc, labels_n),
                batch_size=batch_size,
                normalisation=self.normalisation,
                dtype=self.dtype,
                device=self.device,
                shuffle=False,
                drop_last=False,
            ) as pipeline,
        ):
            return predict(self.network, pipeline.epoch(0), tta, self.dtype)


def read_test_set(config: Config, reporter: Reporter) -> tuple[Split, artefacts.Index]:
    """The test set that a run's settings name, through the cache."""
    source = find_data(config.data, Clock(since_process_start=False), reporter, download=False)
    folder = artefacts.cached(source, "npy", on_progress=partial(reporter.advance, "converting"))
    return artefacts.read(folder, "test"), artefacts.read_index(folder)


def about_weights(path: Path) -> dict[str, Any]:
    """What weights say of the data set that they are for. `ValueError` where they do not."""
    about = checkpoints.read_about(path)
    names, dataset = about.get("class_names"), about.get("dataset")
    of_channels = all(isinstance(about.get(name), list) and len(about[name]) == 3 for name in ("mean", "std"))
    are_names = isinstance(names, list) and names and all(isinstance(name, str) for name in (*names, dataset))
    if not (of_channels and are_names):
        expected = "a data set, its classes, and mean and std of three channels"
        raise ValueError(f"{path}: its metadata is damaged, expected {expected}")
    return about
