"""What a recipe's augmentation shows of training images: the very pixels that training sees, taken from its batches."""

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import torch

from fastcifar import artefacts
from fastcifar.artefacts import Source
from fastcifar.kernels import Augmentation
from fastcifar.pipelines import Batch, Pipeline
from fastcifar.report.grids import Cell
from fastcifar.report.pictures import Augmented
from fastcifar.report.progress import Reporter
from fastcifar.schema import Config
from fastcifar.training.clock import Clock
from fastcifar.training.session import Session


def augmented(config: Config, source: Source, reporter: Reporter, *, num_images: int, num_epochs: int) -> Augmented:
    """The first images of each class, as the run's first epochs show them: crop, flip, colours, box and partner.

    Raises `ValueError` where there are not so many images, or the recipe's settings do not fit them.
    """
    for setting, value in (("--images", num_images), ("--epochs", num_epochs)):
        if value < 1:
            raise ValueError(f"{setting}: got {value}, takes a whole number above 0")
    config = replace(config, train=replace(config.train, dtype="float32"))
    session = Session.prepare(config, source, Clock(since_process_start=False), reporter)
    split = artefacts.read(session.artefact, "train")
    mean, std = (np.array(values) for values in (session.index.mean, session.index.std))
    with session.training_pipeline(session.split_rows()[0]) as pipeline:
        orders = [pipeline.order(epoch) for epoch in range(num_epochs)]
        rows_m = _one_of_each_class(orders, split.labels_n, num_images)
        cells = [[Cell(split.images_nhwc[row], split.class_names[split.labels_n[row]])] for row in rows_m]
        for epoch, order in enumerate(orders):
            places = {row: place for place, row in enumerate(order.tolist())}
            for row, images in zip(rows_m, cells, strict=True):
                step, position = divmod(places[row], pipeline.batch_size)
                batch = _batch(pipeline, epoch, step)
                assert int(batch.indices[position]) == row
                shown_hwc = batch.images[position].permute(1, 2, 0).float().cpu().numpy() * std + mean
                caption = _mix_caption(batch, position, split.class_names)
                images.append(Cell(np.clip(shown_hwc, 0, 1), caption))
    title = f"Augmentation of {config.name} on {split.dataset} training images"
    note = f"{describe(config.augmentation)}; seed {config.seed}, {config.pipeline.name} pipeline"
    return Augmented(cells, title, note)


def describe(augmentation: Augmentation) -> str:
    """The settings that are not off, in words."""
    off = Augmentation()
    told = [
        f"{field.name} {getattr(augmentation, field.name)}"
        for field in fields(augmentation)
        if getattr(augmentation, field.name) != getattr(off, field.name)
    ]
    return ", ".join(told) or "no augmentation"


def _one_of_each_class(orders: Sequence[np.ndarray], labels_n: np.ndarray, num: int) -> list[int]:
    """Rows that every epoch shows, class after class: the first of each, then the second of each, and so on."""
    shown_m = orders[0]
    for order in orders[1:]:
        shown_m = np.intersect1d(shown_m, order)
    if num > len(shown_m):
        raise ValueError(f"--images: got {num}, takes at most the {len(shown_m)} that every epoch shows")
    shown_m = np.sort(shown_m)
    labels_m = labels_n[shown_m]
    rank_m = np.empty(len(shown_m), np.int64)
    for label in np.unique(labels_m):
        own = labels_m == label
        rank_m[own] = np.arange(own.sum())
    return shown_m[np.lexsort((labels_m, rank_m))[:num]].tolist()


def _batch(pipeline: Pipeline, epoch: int, step: int) -> Batch:
    batches = pipeline.epoch(epoch, step)
    return next(iter(batches))


def _mix_caption(batch: Batch, position: int, class_names: Sequence[str]) -> str:
    """Whose image it is and by how much, where images are mixed."""
    if batch.mix_labels is None or batch.mix_weights is None:
        return ""
    percent = round(100 * float(batch.mix_weights[position]))
    labels = torch.stack([batch.labels[position], batch.mix_labels[position]]).tolist()
    own, other = (class_names[label] for label in labels)
    return own if percent == 100 else f"{percent} % {own}\n{100 - percent} % {other}"
