"""A whole run: train, evaluate, and write it all down."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastcifar import data, models
from fastcifar.config import Config
from fastcifar.report.card import Card
from fastcifar.report.environment import environment
from fastcifar.report.progress import Reporter
from fastcifar.report.run_folder import RunFolder
from fastcifar.training import checkpoints, loop, optimizers
from fastcifar.training.averaging import Averaging
from fastcifar.training.clock import Clock
from fastcifar.training.device import describe, use_compile
from fastcifar.training.listeners import Listener
from fastcifar.training.session import Session

if TYPE_CHECKING:
    from fastcifar.pipelines import Pipeline


def run(
    config: Config,
    source: data.Source,
    folder: RunFolder,
    clock: Clock,
    reporter: Reporter,
    *,
    target: float | None = None,
    resume: bool = False,
    listeners: Sequence[Listener] = (),
) -> Card:
    """Train and score `config`, everything into `folder`; `resume` goes on from its checkpoint.

    `source` is the data set; `target` is a share of the test set that the card compares with. Raises `ValueError` (a
    wrong setting or unusable data) and `loop.NonFiniteLossError`.
    """
    session = Session.prepare(config, source, clock, reporter)
    surroundings = environment(describe(session.device))
    folder.environment.write_text(json.dumps(surroundings, indent=2) + "\n", encoding="utf-8")
    with clock.part("load"):
        train_rows_n, validation_rows_n = session.split_rows()
        network = session.network()
        pipeline = session.training_pipeline(train_rows_n)
    with pipeline:
        forward: Callable[[Tensor], Tensor] = network
        if compiled := use_compile(config.train, session.device):
            forward = loop.compiled(network)
            _warm_up(network, forward, pipeline, session, clock)
        state = _new_state(network, config)
        if resume:
            state.step = checkpoints.load_checkpoint(folder.checkpoint, network, state.optimizers, state.averaging)
            folder.keep_metrics_until(state.step)
        reports: list[loop.EpochReport] = []
        validation: list[float] = []

        def on_epoch(report: loop.EpochReport) -> None:
            reports.append(report)
            if validation_rows_n is not None:
                with clock.part("evaluate"):
                    validation.append(session.predictions(network, "train", "none", validation_rows_n).accuracy)
            latest = validation[-1] if validation else None
            entry = {"dataset": session.index.dataset, **asdict(report), "validation_accuracy": latest}
            folder.append_metrics(entry)
            reporter.epoch(report, config.train.epochs, session.index.dataset, latest)
            if config.train.checkpoint_epochs and report.epoch % max(1, round(config.train.checkpoint_epochs)) == 0:
                checkpoints.save_checkpoint(folder.checkpoint, state.step, network, state.optimizers, state.averaging)
            for listener in listeners:
                listener.epoch(entry)

        def on_step(step: int, num_steps: int) -> None:
            reporter.advance("training", step, num_steps, unit=f"step {step}/{num_steps}")

        for listener in listeners:
            listener.started(config, folder)
        try:
            with clock.part("train"):
                loop.train(state, forward, pipeline, config, session.dtype, loop.Hooks(on_step, on_epoch))
        except loop.NonFiniteLossError as error:
            good = folder.checkpoint if folder.checkpoint.exists() else "none, it came before the first"
            raise loop.NonFiniteLossError(f"{error}; last good checkpoint: {good}") from None

    with clock.part("evaluate"):
        predictions = session.predictions(network, "test", config.evaluate.tta)
    # With these, weights say what they are for without the data set that they were trained on.
    about = {name: getattr(session.index, name) for name in ("dataset", "class_names", "mean", "std")}
    checkpoints.save_weights(folder.weights, network, {"model": asdict(config.model), **about})
    card = Card(
        recipe=config.name,
        dataset=session.index.dataset,
        num_train=pipeline.num_images,
        num_test=len(predictions.labels),
        source=session.index.source,
        device=describe(session.device),
        dtype=str(session.dtype).removeprefix("torch."),
        compiled=compiled,
        pipeline=config.pipeline.name,
        network=config.model.name,
        num_parameters=models.num_parameters(network),
        epochs=config.train.epochs,
        batch_size=config.pipeline.batch_size,
        seed=config.seed,
        tta=config.evaluate.tta,
        accuracy=predictions.accuracy,
        tta_accuracy=predictions.tta_accuracy,
        test_loss=predictions.loss,
        train_accuracy=reports[-1].accuracy if reports else None,
        validation_accuracy=validation[-1] if validation else None,
        target=target,
        seconds=clock.seconds(),
        run=str(folder.path),
    )
    folder.card.write_text(json.dumps(card.to_json(), indent=2) + "\n", encoding="utf-8")
    for listener in listeners:
        listener.finished(card)
    return card


def _new_state(network: nn.Module, config: Config) -> loop.State:
    optimizer_list = optimizers.build(network, config.optimizer, config.pipeline.batch_size)
    return loop.State(network, optimizer_list, Averaging(network, config.train))


def _warm_up(
    network: nn.Module, forward: Callable[[Tensor], Tensor], pipeline: "Pipeline", session: Session, clock: Clock
) -> None:
    """Compile and run every form of the step on labels that mean nothing, and put the network back as it was."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = _new_state(network, session.config)
    network.train()
    batch = next(iter(pipeline.epoch(0)))
    dummy = replace(batch, labels=torch.zeros_like(batch.labels))
    for part in ("compile", "warm-up"):
        with clock.part(part):
            for state.step in loop.turning_steps(session.config, pipeline.steps_per_epoch):
                loop.take_step(state, forward, dummy, session.config, session.dtype, pipeline.steps_per_epoch)
    network.load_state_dict(before)
