"""What a run stands on: where its data is, artefact, device and dtype, and the pipelines and networks made of them."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcifar import artefacts, data, kernels, models, pipelines
from fastcifar.artefacts.sources import locate
from fastcifar.report.progress import Reporter
from fastcifar.schema import Config, DataConfig, ModelConfig, check
from fastcifar.training.clock import Clock
from fastcifar.training.device import set_up
from fastcifar.training.evaluation import Predictions, predict
from fastcifar.training.memory import told_of_memory

WHITENING_IMAGES = 5000


@dataclass(frozen=True)
class Session:
    """A configuration with everything found that it asks for."""

    config: Config
    artefact: Path
    index: artefacts.Index
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def prepare(cls, config: Config, source: artefacts.Source, clock: Clock, reporter: Reporter) -> "Session":
        """Set the process up for the run and find or convert the artefact that its pipeline reads."""
        device, dtype = set_up(config.train)
        with clock.part("convert"):
            wanted = pipelines.needs(config.pipeline.name)
            artefact = artefacts.cached(source, wanted, on_progress=partial(reporter.advance, "converting"))
        return cls(config, artefact, artefacts.read_index(artefact), device, dtype)

    def training_pipeline(self, rows_n: np.ndarray | None) -> pipelines.Pipeline:
        """Augmented batches of the training images, or of the given rows of them. `OutOfMemoryError` may be raised."""
        name, batch_size = self.config.pipeline.name, self.config.pipeline.batch_size
        self._check_fits(rows_n)
        less = f"less takes: --set pipeline.batch_size={max(1, batch_size // 2)}"
        if name == "resident":
            less += ", or --set pipeline.name=ffcv or dali, which keep no whole data set there"
        with told_of_memory(f"as the {name} pipeline opens with pipeline.batch_size {batch_size}; {less}", self.device):
            return pipelines.open(
                self.artefact,
                name,
                part="train",
                batch_size=batch_size,
                augmentation=self.config.augmentation,
                dtype=self.dtype,
                device=self.device,
                seed=self.config.seed,
                rows=rows_n,
                streaming=self.config.pipeline.streaming,
            )

    def _check_fits(self, rows_n: np.ndarray | None) -> None:
        """`ValueError` where the settings ask for more than there is of images, or of pixels in them."""
        part, batch_size = self.index.part("train"), self.config.pipeline.batch_size
        num_images = part.count if rows_n is None else len(rows_n)
        takes = f"at most the {num_images:,} images to train on"
        check("pipeline.batch_size", batch_size, batch_size <= num_images, takes)
        height, width, _ = part.shape
        try:
            self.config.augmentation.check_size(height, width)
        except ValueError as error:
            raise ValueError(f"augmentation.{error}") from None

    def predictions(self, network: nn.Module, part: str, tta: str, rows_n: np.ndarray | None = None) -> Predictions:
        """The network's predictions for a part, or for the given rows of it, in order."""
        batch_size = self.config.evaluate.batch_size
        less = f"less takes: --set evaluate.batch_size={max(1, batch_size // 2)}"
        with (
            told_of_memory(f"with evaluate.batch_size {batch_size}; {less}", self.device),
            pipelines.open(
                self.artefact,
                self.config.pipeline.name,
                part=part,
                batch_size=batch_size,
                dtype=self.dtype,
                device=self.device,
                shuffle=False,
                drop_last=False,
                rows=rows_n,
                streaming=self.config.pipeline.streaming,
            ) as pipeline,
        ):
            return predict(network, pipeline.epoch(0), tta, self.dtype)

    def network(self, rows_n: np.ndarray | None = None) -> nn.Module:
        """The run's network as the seed initialises it, on the device, channels-last; a whitening stem is set.

        `rows_n`: int64 [n], ascending, those of the training images that may be looked at for that; None: all.
        """
        torch.manual_seed(self.config.seed)
        network = build_network(self.config.model, len(self.index.class_names))
        for setting, pixels in self._small_sides():
            try:
                models.check_side(network, pixels)
            except ValueError as error:
                raise ValueError(f"{setting}: {error}") from None
        init_whiten = getattr(network, "init_whiten", None)
        if callable(init_whiten):
            init_whiten(self._first_images(rows_n))
        return to_device(network, self.device)

    def _small_sides(self) -> list[tuple[str, int]]:
        """The settings that make images smaller, each with the smallest side in pixels that it asks for."""
        resolutions = [stage.pixels for stage in self.config.train.resolution if stage.pixels]
        selection = self.config.selection
        found = [("train.resolution", min(resolutions))] if resolutions else []
        return [*found, ("selection.pixels", selection.pixels)] if selection.keep < 1 and selection.pixels else found

    def split_rows(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Rows to train on and rows held out for validation; (None, None) where none are."""
        if not self.config.data.validation:
            return None, None
        labels_n = artefacts.read_labels(self.artefact, "train")
        return data.stratified_rows(labels_n, self.config.data.validation, self.config.seed)

    def _first_images(self, of_n: np.ndarray | None) -> Tensor:
        """The first training images, or the first of the given rows of them, normalised, float32 [n, 3, h, w]."""
        if of_n is None:
            images_nhwc = artefacts.read_first(self.artefact, "train", WHITENING_IMAGES)
        else:
            first_n = of_n[:WHITENING_IMAGES]
            images_nhwc = artefacts.read_first(self.artefact, "train", int(first_n[-1]) + 1)[first_n]
        height, width = images_nhwc.shape[1:3]
        rows_n = np.arange(len(images_nhwc))
        plan = kernels.draw_plan(kernels.Augmentation(), seed=0, epoch=0, indices_n=rows_n, height=height, width=width)
        normalisation = kernels.Normalisation(self.index.mean, self.index.std)
        return kernels.augment(images_nhwc, plan, normalisation, dtype=torch.float32)


def build_network(model: ModelConfig, num_classes: int) -> nn.Module:
    """The network that a configuration names. `ValueError` where there is none, or it is too large."""
    return models.build(
        model.name,
        num_classes=num_classes,
        widths=model.widths,
        dropout=model.dropout,
        int8=model.int8,
        max_parameters=model.max_parameters,
    )


def to_device(network: nn.Module, device: torch.device) -> nn.Module:
    """The network itself, on a device, channels-last."""
    return network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def about_data(index: artefacts.Index) -> dict[str, Any]:
    """What weights must say of their data set, to be of use without it."""
    return {name: getattr(index, name) for name in ("dataset", "class_names", "mean", "std")}


def find_data(config: DataConfig, clock: Clock, reporter: Reporter, *, download: bool = True) -> artefacts.Source:
    """Where the data set is; a banner says so when the drawn stand-in takes its place."""
    path = Path(config.path).expanduser() if config.path else None
    with clock.part("load"):
        source = locate(config.dataset, path, download=download, on_progress=reporter.advance)
    if source.note:
        reporter.banner(
            f"No CIFAR-10: {source.note}.\n\nGoing on with shapes10, a drawn stand-in of CIFAR's shape. Its accuracies "
            "are not CIFAR-10 accuracies. For CIFAR-10, name its folder or .tar.gz by --data or $FASTCIFAR_DATA, or "
            "put it into ./data."
        )
    return source


def resolve(config: Config, source: artefacts.Source) -> Config:
    """The configuration with the data set that was found, so that the run folder says which and where."""
    path = "" if source.path is None else str(source.path.absolute())
    dataset = source.dataset.removesuffix("-small")  # a setting, which knows the whole sets' names
    return replace(config, data=replace(config.data, dataset=dataset, path=path))
