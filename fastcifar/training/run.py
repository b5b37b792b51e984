"""A whole run: train, evaluate, and write it all down."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from fastcifar import artefacts, kernels, models
from fastcifar import config as configs
from fastcifar.atomic import write_atomically
from fastcifar.interruption import InterruptedRunError, StopRequest
from fastcifar.report.card import Card
from fastcifar.report.environment import environment
from fastcifar.report.meter import Meter
from fastcifar.report.progress import Reporter
from fastcifar.report.run_folder import RunFolder
from fastcifar.schema import Config
from fastcifar.training import checkpoints, distributed, loop
from fastcifar.training.clock import Clock
from fastcifar.training.device import describe, pick_device, use_compile, without_compiler
from fastcifar.training.evaluation import Predictions
from fastcifar.training.listeners import Listener
from fastcifar.training.memory import OutOfMemoryError, fits, ran_out_of_memory
from fastcifar.training.rehearsal import memory_sentence, warm_up
from fastcifar.training.resuming import processes_before, restore
from fastcifar.training.session import Session, about_data, build_network, to_device
from fastcifar.training.tally import EpochReport, NonFiniteLossError

if TYPE_CHECKING:
    import numpy as np

    from fastcifar.pipelines import Pipeline


TELL_PACE_AFTER_S, TELL_PACE_ABOVE_S = 20.0, 1800.0
"""After so many seconds a run says how long it will take, if it is more than so many: on a small machine the line of
the first epoch may come after an hour."""


@dataclass(frozen=True)
class Trained:
    """A network at the end of its training, before anything has looked at the test set."""

    session: Session
    network: nn.Module
    num_train: int
    compiled: bool
    train_accuracy: float | None
    """Of the last epoch; None where there was none."""
    validation_accuracy: float | None
    """Of the last epoch; None where nothing is held out."""
    skipped_steps: int
    meter: Meter


def fit(
    config: Config,
    source: artefacts.Source,
    folder: RunFolder,
    clock: Clock,
    reporter: Reporter,
    *,
    resume: bool = False,
    listeners: Sequence[Listener] = (),
) -> Trained:
    """Train and validate `config` into `folder`, as `run` does, and leave the test set alone: no weights, no card.

    Raises what `run` does.
    """
    compiled = use_compile(config.train, pick_device())  # what it takes and lacks is said before anything is converted
    session = Session.prepare(config, source, clock, reporter)
    if not compiled and config.train.compile == "auto" and session.device.type == "cuda":
        reporter.line(f"steps are not compiled, which makes them slower: {without_compiler(session.device)}")
    goes_on = resume and bool(checkpoints.checkpoint_paths(folder.checkpoints))
    meter = Meter(folder, clock, goes_on=goes_on)
    about = environment(describe(session.device)) | {
        "pixels_sha256": session.index.pixels_sha256,
        "processes": distributed.num_processes(),
    }
    if goes_on:
        about["before"] = processes_before(folder, about, reporter)
    write_atomically(folder.environment, (json.dumps(about, indent=2) + "\n").encode())
    with clock.part("compile"):
        kernels.prepare(session.device)
    with clock.part("load"):
        train_rows_n, validation_rows_n = session.split_rows()
        network = session.network(train_rows_n)
    with clock.part("compile"):
        models.prepare(network, session.device, session.dtype)
    with clock.part("load"):
        if config.train.start_from and not goes_on:
            _start_from(session, network, reporter)
        teacher = _teacher(session)
    if teacher is not None:
        with clock.part("compile"):
            models.prepare(teacher, session.device, session.dtype)
    with clock.part("load"):
        pipeline = session.training_pipeline(train_rows_n)
    reporter.line(_sentence(session, network, pipeline, folder))
    told = configs.dumps(replace(config, data=replace(config.data, path="")))
    distributed.begin(network, told, session.index.pixels_sha256, str(goes_on))
    with pipeline:
        forward: Callable[[Tensor], Tensor] = network
        state = loop.new_state(network, config, session.dtype, teacher)
        if compiled:
            forward = loop.compiled(network)
            if not fits(partial(warm_up, network, forward, pipeline, session, clock)):
                raise OutOfMemoryError(memory_sentence(session, state, pipeline))
        if resume:
            restore(state, folder, reporter, goes_on=goes_on)
        training = _Training(
            session, state, forward, pipeline, folder, clock, meter, reporter, validation_rows_n, listeners
        )
        for listener in listeners:
            listener.started(config, folder)
        training.run()
    # From the metrics: a run that goes on after its last epoch has trained none itself.
    last = folder.last_metrics()
    return Trained(
        session,
        network,
        pipeline.num_images,
        compiled,
        last.get("accuracy"),
        last.get("validation_accuracy"),
        state.skipped_steps,
        meter,
    )


def run(
    config: Config,
    source: artefacts.Source,
    folder: RunFolder,
    clock: Clock,
    reporter: Reporter,
    *,
    resume: bool = False,
    listeners: Sequence[Listener] = (),
) -> Card:
    """Train and score `config`, everything into `folder`; `resume` goes on from its last checkpoint.

    A new run that fails before there is anything to keep takes its folder away. `source` is the data set. Raises
    `ValueError` (a wrong setting or unusable data), `NonFiniteLossError`, `OutOfMemoryError`, and
    `InterruptedRunError` after Ctrl-C, SIGTERM or SIGHUP, when a checkpoint is written.
    """
    try:
        trained = fit(config, source, folder, clock, reporter, resume=resume, listeners=listeners)
        card = _score(trained, source, folder, clock)
        for listener in listeners:
            listener.finished(card)
        return card
    except BaseException:
        if not resume:
            folder.remove_unless_begun()
        raise
    finally:
        for listener in listeners:
            listener.ended()
        # A process may train more networks: the graphs of this one are of no more use, and hold a step's memory.
        loop.forget_compiled()


def _score(trained: Trained, source: artefacts.Source, folder: RunFolder, clock: Clock) -> Card:
    """Read the test set, once, and write everything down."""
    session, network, config = trained.session, trained.network, trained.session.config
    with clock.part("evaluate"):
        predictions = session.predictions(network, "test", config.evaluate.tta)
    checkpoints.save_predictions(folder.predictions, predictions)
    # With these, weights say what they are for without the data set that they were trained on.
    checkpoints.save_weights(folder.weights, network, {"model": asdict(config.model), **about_data(session.index)})
    card = Card(
        recipe=config.name,
        dataset=session.index.dataset,
        num_train=trained.num_train,
        num_test=len(predictions.labels),
        source=str(source.path or session.index.source),
        device=describe(session.device),
        dtype=models.arithmetic(network, session.device, session.dtype, compiled=trained.compiled),
        compiled=trained.compiled,
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
        train_accuracy=trained.train_accuracy,
        validation_accuracy=trained.validation_accuracy,
        skipped_steps=trained.skipped_steps,
        target=config.target / 100 if config.target else None,
        seconds=trained.meter.seconds(),
        # Each process counts its own GPU.
        energy_j=trained.meter.energy_j() if distributed.num_processes() == 1 else None,
        run=str(folder.path),
    )
    write_atomically(folder.card, (json.dumps(card.to_json(), indent=2) + "\n").encode())
    trained.meter.note()
    return card


@dataclass
class _Training:
    """The loop with all that hangs on it: validation, metrics, checkpoints, and what can go wrong."""

    session: Session
    state: loop.State
    forward: Callable[[Tensor], Tensor]
    pipeline: "Pipeline"
    folder: RunFolder
    clock: Clock
    meter: Meter
    reporter: Reporter
    validation_rows_n: "np.ndarray | None"
    listeners: Sequence[Listener]
    validation_accuracy: float | None = None
    told_pace: bool = False

    def run(self) -> None:
        """Train to the end, or raise what stopped it."""
        config, state = self.session.config, self.state
        with StopRequest() as request:
            hooks = loop.Hooks(
                self._on_step,
                self._on_epoch,
                stop=partial(_asked_to_stop, request),
                ends=lambda: distributed.largest(self._ends_early()) > 0,
            )
            try:
                ran_out = over = False
                with self.clock.part("train"):
                    over = loop.train(state, self.forward, self.pipeline, config, self.session.dtype, hooks)
            except NonFiniteLossError as error:
                self._save_batch(error.step)
                distributed.wait_for_all()
                good = checkpoints.checkpoint_paths(self.folder.checkpoints)
                raise NonFiniteLossError(
                    f"{error}; the batch is kept in {self.folder.nonfinite}; "
                    f"last good checkpoint: {good[-1] if good else 'none, it came before the first'}; "
                    "a smaller optimizer.lr may help, or --set train.on_nonfinite=skip",
                    error.step,
                ) from None
            except RuntimeError as error:
                if not ran_out_of_memory(error):
                    raise
                ran_out = True
            if ran_out:
                # Out of the handler: within it the traceback holds the failed step's tensors, beside which less fits.
                raise OutOfMemoryError(memory_sentence(self.session, state, self.pipeline))
            # A signal that came in the last step, or while that was validated, counts too.
            if not over or _asked_to_stop(request):
                path = self._save()
                self.meter.note()
                distributed.wait_for_all()
                raise InterruptedRunError(
                    f"stopped after step {state.step}, all of it kept in {path}; "
                    f"go on with: {distributed.command()} train --resume {self.folder.path}",
                    request.exit_code,
                )

    def _on_step(self, step: int, num_steps: int) -> None:
        self.reporter.advance("training", step, num_steps, unit=f"step {step}/{num_steps}")
        state, pace_s = self.state, self.state.tally.seconds_s
        if not self.told_pace and pace_s > TELL_PACE_AFTER_S:
            self.told_pace = True
            left_s = pace_s * loop.work_left(state, self.session.config, num_steps, self.pipeline.contents.height)
            if left_s > TELL_PACE_ABOVE_S:
                self.reporter.line(f"at this pace training takes another {left_s / 3600:.1f} hours")

    def _on_epoch(self, report: EpochReport) -> None:
        config, dataset = self.session.config, self.session.index.dataset
        entry = {"dataset": dataset, **asdict(report), "validation_accuracy": None}
        if self.validation_rows_n is not None:
            predictions = self._validate(report.epoch)
            entry |= {"validation_accuracy": predictions.accuracy, "validation_loss": predictions.loss}
        if self.state.skipped_steps:
            entry["skipped_steps"] = self.state.skipped_steps
        self.folder.append_metrics(entry)
        self.reporter.epoch(report, config.train.epochs, dataset, self.validation_accuracy)
        if config.train.checkpoint_epochs and report.epoch % config.train.checkpoint_epochs == 0:
            with self.clock.part("other"):
                self._save()
            self.meter.note()
        for listener in self.listeners:
            listener.epoch(entry)

    def _validate(self, epoch: int) -> Predictions:
        """Score the validation split after an epoch, counted from 1, and tell those that go by it.

        That is the plateau, early stopping and the best weights.
        """
        state, session = self.state, self.session
        with self.clock.part("evaluate"), state.averaging.applied():
            predictions = session.predictions(state.network, "train", "none", self.validation_rows_n)
            # The same bits in every process, whose rates and ends must not part.
            loss, accuracy = distributed.mean(predictions.loss), distributed.mean(predictions.accuracy)
            self.validation_accuracy = accuracy
            state.plateau.update(session.config.schedule, loss, accuracy)
            if accuracy > state.best_accuracy:
                state.best_accuracy, state.best_epoch = accuracy, epoch
                about = {"model": asdict(session.config.model), "epoch": epoch, **about_data(session.index)}
                checkpoints.save_weights(self.folder.best, state.network, about)
        return predictions

    def _ends_early(self) -> bool:
        # By the step, so that a run killed after its last epoch ends when it goes on.
        done, patience = self.state.step // self.pipeline.steps_per_epoch, self.session.config.train.early_stop_epochs
        if not patience or done - self.state.best_epoch < patience:
            return False
        self.reporter.line(f"ended early: no better validation accuracy since epoch {self.state.best_epoch}")
        return True

    def _save(self) -> Path:
        config = self.session.config
        return checkpoints.save_latest(
            self.folder.checkpoints, self.state, configs.dumps(config), config.train.keep_checkpoints
        )

    def _save_batch(self, step: int) -> None:
        """Keep the batch of a step, counted from 1: a function of its number, so it can be had again."""
        epoch, step_in_epoch = divmod(step - 1, self.pipeline.steps_per_epoch)
        batch = next(iter(self.pipeline.epoch(epoch, step_in_epoch)))
        tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
        checkpoints.save_tensors(self.folder.nonfinite, tensors, {"step": step, "epoch": epoch + 1})


def _asked_to_stop(request: StopRequest) -> bool:
    """Whether any process was, which then all are: they stop after the same step."""
    number = distributed.largest(request.signal_number)
    if number:  # or a signal that came meanwhile would be lost
        request.signal_number = number
    return number > 0


def _sentence(session: Session, network: nn.Module, pipeline: "Pipeline", folder: RunFolder) -> str:
    """What is about to be trained, on what, and where it is kept: the first line comes before the first epoch ends."""
    config = session.config
    parts = (
        f"{config.name}: {config.model.name} of {models.num_parameters(network):,} parameters",
        f"{config.train.epochs:g} epochs of {pipeline.num_images:,} {session.index.dataset} images",
        f"batch {pipeline.batch_size} by {config.pipeline.name}",
        f"{models.arithmetic(network, session.device, session.dtype)} on {describe(session.device)}",
        f"into {folder.path}",
    )
    return ", ".join(parts)


def _other_run(setting: str, path: str) -> tuple[RunFolder, tuple[str, ...]]:
    """Folder of the run that a setting names, and the classes that its weights tell of. `ValueError` if it is none."""
    try:
        folder = RunFolder.open(Path(path))
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from None
    return folder, tuple(checkpoints.read_about(folder.weights).get("class_names", ()))


def _start_from(session: Session, network: nn.Module, reporter: Reporter) -> None:
    """Put in the weights of the run that `train.start_from` names; where its classes are others, not the head's."""
    path = session.config.train.start_from
    folder, classes = _other_run("train.start_from", path)
    anew = len(classes) > 0 and classes != session.index.class_names
    checkpoints.load_weights(folder.weights, network, without=("head.",) if anew else ())
    if anew:
        reporter.line(f"train.start_from: {path} tells other classes apart, so the last layer begins anew")


def _teacher(session: Session) -> nn.Module | None:
    """The network of the run that `distill.teacher` names, in evaluation mode."""
    path, num_classes = session.config.distill.teacher, len(session.index.class_names)
    if not path:
        return None
    folder, classes = _other_run("distill.teacher", path)
    if len(classes) not in (0, num_classes):
        raise ValueError(
            f"distill.teacher: {path} tells {len(classes)} classes apart, takes one of {num_classes}, as here"
        )
    model = replace(folder.read_config().model, max_parameters=0)
    teacher = to_device(build_network(model, num_classes), session.device)
    checkpoints.load_weights(folder.weights, teacher)
    return teacher.requires_grad_(False).eval()
