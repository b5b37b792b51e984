"""A finished run's network, ready to look at images."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastcifar import artefacts, pipelines
from fastcifar.data import Source, Split
from fastcifar.data.locate import find
from fastcifar.kernels import Normalisation
from fastcifar.report.progress import Reporter
from fastcifar.report.run_folder import RunFolder
from fastcifar.schema import Config
from fastcifar.training import checkpoints
from fastcifar.training.clock import Clock
from fastcifar.training.device import keep_freed_memory, pick_device, pick_dtype
from fastcifar.training.evaluation import Predictions, predict
from fastcifar.training.session import about_data, build_network, find_data


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
    def load(cls, folder: RunFolder, reporter: Reporter, data_path: str = "", *, best: bool = False) -> "Finished":
        """The network of `folder`, in evaluation mode, on the device; `best`: of the best validated epoch.

        The weights say what they are for; those of older runs do not, and then the data set is read: at `data_path`
        where that holds it, else where the run found it. `ValueError` where there are no weights, or they do not fit.
        """
        keep_freed_memory()
        config = folder.read_config()
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        weights = folder.best if best else folder.weights
        if best and not weights.is_file():
            raise ValueError(f"--best: {weights} is not there; only runs with data.validation keep their best weights")
        if not weights.is_file():
            advice = f"fastcifar train --resume {folder.path}"
            raise ValueError(f"{weights}: no such file; where the run is not finished, go on with: {advice}")
        about = about_weights(weights) or about_data(read_test_set(config, reporter, data_path)[1])
        device = pick_device()
        network = build_network(config.model, len(about["class_names"]))
        checkpoints.load_weights(weights, network)
        network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(
            folder=folder,
            config=config,
            network=network.eval(),
            dataset=about["dataset"],
            class_names=tuple(about["class_names"]),
            normalisation=Normalisation(tuple(about["mean"]), tuple(about["std"])),  # type: ignore[arg-type]
            device=device,
            dtype=pick_dtype(config.train, device),
        )

    def predictions(
        self, images_nhwc: np.ndarray, labels_n: np.ndarray | None = None, tta: str = "none"
    ) -> Predictions:
        """Predictions for uint8 images [n, h, w, 3], in order; labels int64 [n] are 0 where there are none."""
        labels_n = np.zeros(len(images_nhwc), np.int64) if labels_n is None else labels_n
        with pipelines.open(
            (images_nhwc, labels_n),
            batch_size=self.config.evaluate.batch_size,
            normalisation=self.normalisation,
            dtype=self.dtype,
            device=self.device,
            shuffle=False,
            drop_last=False,
        ) as pipeline:
            return predict(self.network, pipeline.epoch(0), tta, self.dtype)


def read_test_set(config: Config, reporter: Reporter, data_path: str = "") -> tuple[Split, artefacts.Index]:
    """The test set that a run's settings name, through the cache: at `data_path` where that holds it."""
    folder = artefacts.cached(_source(config, reporter, data_path), "npy", on_progress=_told(reporter))
    return artefacts.read(folder, "test"), artefacts.read_index(folder)


def _source(config: Config, reporter: Reporter, data_path: str) -> Source:
    holds = data_path and find(Path(data_path), (config.data.dataset,)) is not None
    wanted = replace(config.data, path=data_path) if holds else config.data
    return find_data(wanted, Clock(since_process_start=False), reporter, download=False)


def _told(reporter: Reporter) -> Callable[[int, int], None]:
    return partial(reporter.advance, "converting")


def about_weights(path: Path) -> dict[str, Any]:
    """What weights say of the data set that they are for; empty of an older run's, which say nothing of it."""
    about = checkpoints.read_about(path)
    if "class_names" not in about:
        return {}
    names, dataset = about["class_names"], about.get("dataset")
    of_channels = all(isinstance(about.get(name), list) and len(about[name]) == 3 for name in ("mean", "std"))
    are_names = isinstance(names, list) and names and all(isinstance(name, str) for name in (*names, dataset))
    if not (of_channels and are_names):
        expected = "a data set, its classes, and mean and std of three channels"
        raise ValueError(f"{path}: its metadata is damaged, expected {expected}")
    return about
