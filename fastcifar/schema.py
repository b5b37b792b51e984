"""The one schema of a run: frozen dataclasses that refuse what no run can be of."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from fastcifar import pipelines
from fastcifar.data.locate import DATASETS
from fastcifar.kernels import Augmentation

OPTIMIZERS = ("muon", "sgd", "nesterov", "adam", "adamw", "adagrad", "adadelta")
SCHEDULES = ("linear", "cosine", "constant", "triangular", "one_cycle", "step", "plateau")
AVERAGINGS = ("none", "ema", "lookahead", "growing_lookahead")
TTA_LEVELS = ("none", "mirror", "selective", "mirror_translate")


def shown(value: object) -> str:
    """A value as an error shows it: one that a hostile file made huge is cut short."""
    if isinstance(value, int) and abs(value) >= 2**63:
        return "a huge number"
    shown = repr(value)
    return shown if len(shown) <= 200 else f"{shown[:200]}..."


def check(name: str, value: object, ok: object, takes: str) -> None:
    """Raise `ValueError` that says what a setting got and what it takes, unless it is `ok`."""
    if not ok:
        raise ValueError(f"{name}: got {shown(value)}, takes {takes}")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    check(name, value, value in choices, "one of " + ", ".join(choices))


@dataclass(frozen=True)
class DataConfig:
    """Which images."""

    dataset: str = "auto"
    """cifar10, cifar100, shapes10, or auto: the set at path or $FASTCIFAR_DATA, else CIFAR-10, else drawn shapes10."""
    path: str = ""
    """Folder or .tar.gz to read; empty: $FASTCIFAR_DATA, ./data, the cache folder, then a download."""
    validation: float = 0.0
    """Held out from training: a share (under 1) or a count of images, stratified by class; 0 trains on everything."""

    def __post_init__(self) -> None:
        """Refuse what cannot be a data set."""
        _check_choice("data.dataset", self.dataset, DATASETS)
        whole = self.validation == int(self.validation)
        takes = "0, a share under 1, or a whole count"
        check("data.validation", self.validation, self.validation >= 0 and (self.validation < 1 or whole), takes)


@dataclass(frozen=True)
class PipelineConfig:
    """Where batches come from."""

    name: str = "resident"
    """resident, ffcv, dali or torchvision."""
    batch_size: int = 500
    """Images a step."""
    streaming: bool = False
    """ffcv and dali: read the file through each epoch, in shuffled blocks, for a set larger than memory."""

    def __post_init__(self) -> None:
        """Refuse unknown pipelines, empty batches, and streaming what has to be in memory."""
        _check_choice("pipeline.name", self.name, pipelines.NAMES)
        check("pipeline.batch_size", self.batch_size, self.batch_size > 0, "a whole number above 0")
        can_stream = self.name in ("ffcv", "dali")
        check("pipeline.streaming", self.streaming, not self.streaming or can_stream, f"false for {self.name}")


@dataclass(frozen=True)
class ModelConfig:
    """Which network."""

    name: str = "speednet"
    """speednet, resnet18, modified_resnet, se_resnet, ...: a wrong name lists them all."""
    widths: tuple[int, ...] = ()
    """Channels of each stage; empty: the network's own."""
    dropout: float | None = None
    """Dropout rate in place of the network's own; only networks that have dropout take one."""
    int8: bool = False
    """In bfloat16, on CPUs that have AVX-512's units for it and for bytes (VNNI) but no AMX, uncompiled: products
    within 3x3 convolutions and their gradients are made of 8 bits. Faster, and less exact; no difference anywhere else,
    nor in layers of fewer than 24 channels or whose channels are no multiples of 32 (the input's may be up to 15
    fewer)."""
    max_parameters: int = 5_000_000
    """A network with this many parameters or more is an error; 0 allows any."""

    def __post_init__(self) -> None:
        """Refuse budgets and widths that no network has."""
        check("model.max_parameters", self.max_parameters, self.max_parameters >= 0, "a whole number, 0 for no limit")
        check("model.widths", self.widths, all(w > 0 for w in self.widths), "a list of whole numbers above 0")
        check("model.dropout", self.dropout, self.dropout is None or 0 <= self.dropout < 1, "a share below 1")


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights move."""

    name: str = "muon"
    """muon (convolutions; SGD-Nesterov for the rest), sgd, nesterov, adam, adamw, adagrad or adadelta."""
    lr: float = 0.24
    """Peak learning rate (of the convolutions, for muon)."""
    momentum: float = 0.6
    """Momentum (of the convolutions, for muon); sgd and nesterov have it too, the others have their own constants."""
    weight_decay: float = 2e-6
    """Weight decay. muon: of all but the convolutions; a step at the peak rate shrinks by this times the batch size."""
    decay_norms: bool = True
    """Whether weight decay reaches normalisation parameters and biases too."""
    bias_lr: float = 0.053
    """muon: learning rate of biases and norms for each image of a batch: a step takes this times the batch size."""
    head_lr: float = 0.67
    """muon: learning rate of the last layer, likewise for each image of a batch."""
    sgd_momentum: float = 0.85
    """muon: Nesterov momentum of biases, norms and the last layer."""
    clip_norm: float = 0.0
    """Largest norm of the whole gradient; 0 leaves it alone."""
    clip_value: float = 0.0
    """Largest size of any entry of the gradient; 0 leaves it alone."""

    def __post_init__(self) -> None:
        """Refuse rates and momenta out of range."""
        _check_choice("optimizer.name", self.name, OPTIMIZERS)
        for name in ("lr", "bias_lr", "head_lr"):
            check(f"optimizer.{name}", getattr(self, name), getattr(self, name) > 0, "a number above 0")
        for name in ("momentum", "sgd_momentum"):
            check(f"optimizer.{name}", getattr(self, name), 0 <= getattr(self, name) < 1, "a number from 0 to below 1")
        for name in ("weight_decay", "clip_norm", "clip_value"):
            check(f"optimizer.{name}", getattr(self, name), getattr(self, name) >= 0, "a number of at least 0")


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate goes over the run. Each schedule but `plateau` is a function of the step alone."""

    name: str = "linear"
    """linear or cosine (to 0), constant, triangular (up to the peak, then to 0), one_cycle (the same by cosines, the
    momentum, whatever is set, going from 0.95 to 0.85 and back), step (times `factor` every `step_epochs`) or plateau
    (times `factor` after `patience` epochs without a better validation split)."""
    warmup: float = 0.0
    """Share of the run over which the rate rises linearly from 0; with triangular and one_cycle, the peak's place."""
    factor: float = 0.1
    """step and plateau: what the rate is multiplied by."""
    step_epochs: float = 30.0
    """step: epochs between two steps down."""
    patience: int = 10
    """plateau: epochs without improvement that are waited for."""
    watch: str = "loss"
    """plateau: what has to improve on the validation split, loss or accuracy."""

    def __post_init__(self) -> None:
        """Refuse unknown schedules and settings out of range."""
        _check_choice("schedule.name", self.name, SCHEDULES)
        check("schedule.warmup", self.warmup, 0 <= self.warmup < 1, "a share from 0 to below 1")
        check("schedule.factor", self.factor, 0 < self.factor < 1, "a number between 0 and 1")
        check("schedule.step_epochs", self.step_epochs, self.step_epochs > 0, "a number above 0")
        check("schedule.patience", self.patience, self.patience >= 0, "a whole number of at least 0")
        _check_choice("schedule.watch", self.watch, ("loss", "accuracy"))
        if self.name in ("triangular", "one_cycle"):
            check("schedule.warmup", self.warmup, self.warmup > 0, f"above 0 with {self.name}: where the peak is")


@dataclass(frozen=True)
class Resolution:
    """Train at `pixels` until the share `until` of the run is done."""

    until: float
    pixels: int

    def __post_init__(self) -> None:
        """Refuse what is no share and no size."""
        check("train.resolution.until", self.until, 0 < self.until <= 1, "a share above 0 and up to 1")
        check("train.resolution.pixels", self.pixels, self.pixels >= 8, "at least 8 pixels")


@dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    epochs: float = 8.0
    """Passes over the training images, without an incomplete last batch; a fraction ends within an epoch."""
    label_smoothing: float = 0.2
    """Share of each label spread over all classes."""
    whiten_epochs: float = 3.0
    """Epochs for which the bias of a whitening stem is trained; the rate falls linearly to 0 meanwhile."""
    resolution: tuple[Resolution, ...] = ()
    """Progressive resolution; empty: the images as they are, throughout."""
    averaging: str = "none"
    """none, ema (evaluate the average), lookahead (every 5 steps the weights go on from the average) or
    growing_lookahead (the same, with an average that follows ever more slowly, as airbench has it)."""
    averaging_decay: float = 0.95
    """ema and growing_lookahead: share of the average that a step keeps. lookahead: share that 5 steps keep; 0.5 is
    usual."""
    start_from: str = ""
    """Folder of a run whose weights training starts from (fine-tuning), but for the last layer's where its classes are
    others; empty starts anew."""
    early_stop_epochs: int = 0
    """End the run after this many epochs without a better validation accuracy; 0 never does."""
    dtype: str = "auto"
    """float32 (on a GPU with TF32 products), bfloat16, float16, or auto: bfloat16 where the device has units for it,
    else float32 (on a GPU float16)."""
    compile: str = "auto"
    """on, off or auto: torch.compile on a GPU, given a C compiler (unmeasured yet); not on a CPU: it gained nothing."""
    threads: int = 0
    """CPU threads; 0 takes what torch takes."""
    checkpoint_epochs: int = 1
    """Epochs between checkpoints; 0 writes one only when the run is stopped."""
    keep_checkpoints: int = 2
    """How many of the last checkpoints are kept; the weights of the best validated epoch are kept beside them."""
    on_nonfinite: str = "stop"
    """What a loss that is not finite does: stop the run, or skip the step and be counted."""

    def __post_init__(self) -> None:
        """Refuse lengths and shares out of range."""
        check("train.epochs", self.epochs, self.epochs > 0, "a number above 0")
        check("train.label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "a share below 1")
        check("train.whiten_epochs", self.whiten_epochs, self.whiten_epochs >= 0, "a number of at least 0")
        check("train.averaging_decay", self.averaging_decay, 0 <= self.averaging_decay < 1, "a number below 1")
        check("train.threads", self.threads, self.threads >= 0, "a whole number of at least 0")
        check(
            "train.checkpoint_epochs",
            self.checkpoint_epochs,
            self.checkpoint_epochs >= 0,
            "a whole number of at least 0",
        )
        _check_choice("train.averaging", self.averaging, AVERAGINGS)
        check("train.keep_checkpoints", self.keep_checkpoints, self.keep_checkpoints > 0, "a whole number above 0")
        _check_choice("train.on_nonfinite", self.on_nonfinite, ("stop", "skip"))
        stop = self.early_stop_epochs
        check("train.early_stop_epochs", stop, stop >= 0, "a whole number of at least 0")
        _check_choice("train.dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))
        _check_choice("train.compile", self.compile, ("auto", "on", "off"))
        shares = [stage.until for stage in self.resolution]
        rising = all(a < b for a, b in pairwise(shares)) and (not shares or shares[-1] == 1)
        check("train.resolution", shares, rising, "stages whose `until` rises and ends at 1")


@dataclass(frozen=True)
class SelectionConfig:
    """Train on a part of each batch: on the images that the network, shown them small, gets most wrong."""

    keep: float = 1.0
    """Share of each batch that is trained on; 1 trains on all of it."""
    since: float = 0.0
    """Share of the run after which the hardest images are kept; until then any are."""
    pixels: int = 16
    """Side in pixels at which images are judged; 0: as they are."""

    def __post_init__(self) -> None:
        """Refuse shares and sides out of range."""
        check("selection.keep", self.keep, 0 < self.keep <= 1, "a share above 0 and up to 1")
        check("selection.since", self.since, 0 <= self.since <= 1, "a share from 0 to 1")
        check("selection.pixels", self.pixels, self.pixels >= 0, "a whole number of at least 0")

    def num_kept(self, batch_size: int) -> int:
        """Images of a batch that are trained on, at least 1."""
        return max(1, round(self.keep * batch_size))


@dataclass(frozen=True)
class DistillConfig:
    """Learn from a teacher's outputs as well (Hinton et al., arXiv:1503.02531)."""

    teacher: str = ""
    """Folder of a finished run; empty: no teacher."""
    temperature: float = 4.0
    """What both networks' logits are divided by before they are compared."""
    weight: float = 0.5
    """Share of the loss that is the distance to the teacher; the rest is the distance to the labels."""

    def __post_init__(self) -> None:
        """Refuse temperatures and shares out of range."""
        check("distill.temperature", self.temperature, self.temperature > 0, "a number above 0")
        check("distill.weight", self.weight, 0 <= self.weight <= 1, "a share from 0 to 1")


@dataclass(frozen=True)
class EvaluateConfig:
    """How accuracy is measured."""

    tta: str = "mirror_translate"
    """Views averaged a test image: none (1), mirror (2), mirror_translate (6, as airbench), selective (6 where 1
    leaves doubt)."""
    batch_size: int = 1000
    """Images a forward pass."""

    def __post_init__(self) -> None:
        """Refuse unknown views."""
        _check_choice("evaluate.tta", self.tta, TTA_LEVELS)
        check("evaluate.batch_size", self.batch_size, self.batch_size > 0, "a whole number above 0")


@dataclass(frozen=True)
class Config:
    """A whole run. What is not here does not change a run's result."""

    name: str = "custom"
    """The recipe's name."""
    summary: str = ""
    """One line on what the recipe is for."""
    seed: int = 0
    """Fixes initial weights, order, augmentation, dropout, and which images are held out."""
    target: float = 0.0
    """Test accuracy with TTA in percent that the card compares with; 0: none."""
    data: DataConfig = field(default_factory=DataConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    augmentation: Augmentation = field(default_factory=Augmentation)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        """Refuse seeds that the counter-based generator has no room for, and settings that need a validation split."""
        # It is a part of the names of files.
        check("name", self.name, re.fullmatch(r"[\w.+-]{1,100}", self.name), "letters, digits, and . _ + -")
        check("seed", self.seed, 0 <= self.seed < 2**63, "a whole number from 0 to 2**63 - 1")
        check("target", self.target, 0 <= self.target <= 100, "a percentage")
        if not self.data.validation:
            needs = "takes data.validation above 0: it must not look at the test set"
            if self.schedule.name == "plateau":
                raise ValueError(f"schedule.name: got 'plateau', {needs}")
            if self.train.early_stop_epochs:
                raise ValueError(f"train.early_stop_epochs: got {self.train.early_stop_epochs}, {needs}")
