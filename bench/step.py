"""The training step: its parts told apart, its arithmetic beside a matrix product's, what waiting for data costs."""

import copy
import itertools
import time
from typing import TYPE_CHECKING, Any

from fastcifar.bench import bounds
from fastcifar.bench.job import Job
from fastcifar.bench.measure import Measured, Sample, Spread, share
from fastcifar.bench.results import Result, Row, memory_values, spread_values
from fastcifar.bench.settings import ARITHMETICS
from fastcifar.bench.workers import Entry, Place

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fastcifar.artefacts import Source

PHASES = ("data", "forward", "backward", "optimizer")


def measure(job: Job) -> Result:
    """The recipe's step as it trains; in float32, and in bfloat16, with products of 8 bits too, where it has units."""
    from fastcifar import config as configs

    batch_size = job.pick_batch_size(configs.load(job.recipe).pipeline.batch_size, quick=32)
    told = {"source": job.source, "recipe": job.recipe, "batch_size": batch_size, "num_images": job.num_images}
    entries = []
    for key in ("eager", "compiled") if job.on_gpu else ("eager",):
        entries.append(Entry(key, Step, {**told, "compiled": key == "compiled"}))
    side = 256 if job.quick else 0
    entries.append(Entry("matmul", bounds.MatrixProduct, {"side": side}, role="bound"))
    names = [f"step.{arithmetic}" for arithmetic in _arithmetics(job.recipe)]
    keys = [entry.key for entry in entries]
    measured = job.run(entries, {name: keys for name in names})
    roles = {entry.key: entry.role for entry in entries}
    rows = [
        Row(key, name, roles[key], _values(key, one, measured[name]))
        for name in names
        for key, one in measured[name].items()
    ]
    title = f"Training step of the recipe {job.recipe}, batches of {batch_size}"
    return Result("step", title, "images_s", rows, notes=job.notes)


def _arithmetics(recipe: str) -> list[str]:
    """float32, bfloat16 where training would pick it, and products of 8 bits where they can be had of it."""
    import torch

    from fastcifar import config as configs
    from fastcifar.models.convolution import network_takes_int8
    from fastcifar.schema import TrainConfig
    from fastcifar.training.device import pick_device, pick_dtype
    from fastcifar.training.session import build_network

    device = pick_device()
    if pick_dtype(TrainConfig(), device) != torch.bfloat16:
        return ["fp32"]
    with torch.device("meta"):
        network = build_network(configs.load(recipe, ["model.int8=true"]).model, 10)
    return ["fp32", "bf16", "int8"] if network_takes_int8(network, device, torch.bfloat16) else ["fp32", "bf16"]


def _values(key: str, one: Measured, measured: dict[str, Measured]) -> dict[str, float]:
    if key == "matmul":
        return {"tflop_s": one.rate.median / 1e12, "rounds": one.rate.num}
    values = spread_values("images_s", one.rate) | {"rounds": one.rate.num}
    for name in (*(f"{phase}_ms" for phase in PHASES), "step_ms"):
        values[name] = one.extra(name).median
    flops, forward_flops = one.extra("flops_image").median, one.extra("forward_flops_image").median
    batch = one.extra("batch").median
    values["gflop_image"] = flops / 1e9
    values["tflop_s"] = one.rate.median * flops / 1e12
    values["forward_tflop_s"] = batch * forward_flops / values["forward_ms"] / 1e9
    values["backward_tflop_s"] = batch * (flops - forward_flops) / values["backward_ms"] / 1e9
    if "matmul" in measured:
        values["share_of_matmul"] = share(one, measured["matmul"], factor=flops)
    # What one batch costs is told by itself: two contestants' rates differ by more than that.
    values["stall_share"] = values["data_ms"] / values["step_ms"]
    values["cold_steps_s"] = one.opened.cold_s
    if "compile_s" in one.extra_names():
        values["compile_s"] = one.extra("compile_s").median
    return values | memory_values(one)


class _Stamps:
    """Moments of a step, on the device's own clock: what a GPU was told is not what it has done."""

    def __init__(self, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self._moments: list[list[Any]] = []

    def begin(self) -> None:
        self._moments.append([])
        self.add()

    def add(self) -> None:
        if self._on_gpu:
            import torch

            moment: Any = torch.cuda.Event(enable_timing=True)
            moment.record()
        else:
            moment = time.perf_counter()
        self._moments[-1].append(moment)

    def lengths_ms(self) -> list[list[float]]:
        """For every step, milliseconds between its moments; the GPU must have got there."""
        return [[self._between_ms(first, last) for first, last in itertools.pairwise(step)] for step in self._moments]

    def _between_ms(self, first: Any, last: Any) -> float:
        return first.elapsed_time(last) if self._on_gpu else (last - first) * 1e3


class Step:
    """The loop's own `take_step` of a recipe, at the end of its run: full resolution, the stem frozen.

    `data` is what asking for the batch takes; `forward` ends with the network, `backward` (loss included) where the
    first optimiser begins, `optimizer` with the step.
    """

    def __init__(
        self,
        *,
        place: Place,
        source: "Source",
        recipe: str,
        batch_size: int,
        num_images: int,
        compiled: bool,
    ) -> None:
        self._place, self._source, self._recipe = place, source, recipe
        self._batch_size, self._num_images = batch_size, num_images
        self._compiled = compiled

    def prepare(self, task: str) -> None:
        """Network, optimisers, pipeline; then two steps, which tell what compiling in the first one takes."""
        import numpy as np

        from fastcifar import config as configs
        from fastcifar.report.progress import Reporter
        from fastcifar.training import loop
        from fastcifar.training.clock import Clock
        from fastcifar.training.resolution import pixels_at
        from fastcifar.training.session import Session

        arithmetic = task.rpartition(".")[2]
        int8 = str(arithmetic == "int8").lower()
        told = [
            f"train.dtype={ARITHMETICS[arithmetic]}",
            f"model.int8={int8}",
            f"pipeline.batch_size={self._batch_size}",
        ]
        config = configs.load(self._recipe, [f"data.dataset={self._source.dataset}", *told])
        session = Session.prepare(config, self._source, Clock(), Reporter())
        self._config, self._dtype = config, session.dtype
        network = session.network().train()
        self._network = loop.compiled(network) if self._compiled else network
        self._pipeline = session.training_pipeline(np.arange(self._num_images) if self._num_images else None)
        self._state = loop.new_state(network, config, self._dtype)
        self._state.step = loop.steps_in(config.train.epochs, self._pipeline.steps_per_epoch) - 1
        self._epoch = 0
        self._batches = iter(self._pipeline.epoch(0))
        self._stamps = _Stamps(self._place.device != "cpu")
        self._state.optimizers[0].register_step_pre_hook(lambda *_: self._stamps.add())
        side = pixels_at(config, self._state.step / (self._state.step + 1)) or self._pipeline.contents.height
        flops, forward_flops = count_flops(network, side)
        self._constants = {"flops_image": flops, "forward_flops_image": forward_flops, "batch": float(self._batch_size)}
        first_s, second_s = self._step_s(), self._step_s()
        if self._compiled:
            self._constants["compile_s"] = max(0.0, first_s - second_s)

    def run(self, task: str, seconds: float) -> Sample:
        """Units are images."""
        self._stamps = _Stamps(self._place.device != "cpu")
        sample = bounds.repeat(self._once, seconds, self._place.device)
        lengths = self._stamps.lengths_ms()
        extra = {f"{phase}_ms": _median([step[i] for step in lengths]) for i, phase in enumerate(PHASES)}
        extra["step_ms"] = _median([sum(step) for step in lengths])
        return Sample(sample.units, sample.seconds, extra | self._constants)

    def release(self, task: str) -> None:
        """Let go of the network and the pipeline."""
        del self._batches, self._state, self._network
        self._pipeline.close()

    def _step_s(self) -> float:
        """Seconds of one step, done and not only told."""
        bounds.synchronise(self._place.device)
        start_s = time.perf_counter()
        self._once()
        bounds.synchronise(self._place.device)
        return time.perf_counter() - start_s

    def _once(self) -> float:
        from fastcifar.training import loop

        self._stamps.begin()
        batch = self._next()
        self._stamps.add()
        loop.take_step(self._state, self._forward, batch, self._config, self._dtype, self._pipeline.steps_per_epoch)
        self._stamps.add()
        return float(len(batch.labels))

    def _forward(self, images: "Tensor") -> "Tensor":
        logits = self._network(images)
        self._stamps.add()
        return logits

    def _next(self) -> Any:
        batch = next(self._batches, None)
        if batch is None:
            self._epoch += 1
            self._batches = iter(self._pipeline.epoch(self._epoch))
            batch = next(self._batches)
        return batch


def count_flops(network: "nn.Module", side: int) -> tuple[float, float]:
    """Floating-point operations an image of `side` pixels, of forward and backward, and of forward alone.

    As torch counts them, on the meta device, where the library's own operators are all there is: ours, which take the
    same arithmetic in other pieces, it would not all know.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network = copy.deepcopy(network).to("meta")
    images = torch.zeros(2, 3, side, side, device="meta")
    with FlopCounterMode(display=False) as counter:
        logits = network(images)
        forward = counter.get_total_flops()
        logits.sum().backward()
    return counter.get_total_flops() / 2, forward / 2


def _median(values: list[float]) -> float:
    return Spread.of(values).median
