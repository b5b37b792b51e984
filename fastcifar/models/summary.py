"""What a network is made of, layer by layer: output shapes, parameters, FLOPs, memory.

Counted as torchsummary counts, so that its published tables can be checked: a row for every call of a module but
`nn.Sequential`, `nn.ModuleList` and the network itself, in the order in which calls end. A block has a row of its own
for what it returns after its parts; operations between modules (ReLU, addition, averaging) have none.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

BYTES_A_VALUE = 4
CONTAINERS = (nn.Sequential, nn.ModuleList)


@dataclass(frozen=True)
class Layer:
    """One call of one module."""

    name: str
    """Where the module is in the network: `stages.0.1.first.conv`."""
    kind: str
    """The module's class."""
    output_shape: tuple[int, ...]
    """Of the whole batch: [n, c, h, w] or [n, c]."""
    parameters: int
    """Its own, and those of parts that are used without a call; counted at the first call."""
    flops: int
    """Of one image, its own; a block's parts have theirs."""


@dataclass(frozen=True)
class Summary:
    """A network's layers and totals, for float32 images [n, 3, h, w] forward and backward."""

    layers: tuple[Layer, ...]
    input_shape: tuple[int, ...]
    parameters: int
    trainable_parameters: int
    flops: int
    """Of one image forward: multiply-adds of convolutions and linear layers, times two."""

    @property
    def input_bytes(self) -> int:
        """Memory of the batch of images."""
        return BYTES_A_VALUE * _num_values(self.input_shape)

    @property
    def activation_bytes(self) -> int:
        """Every row's output, once for its value and once for its gradient."""
        return 2 * BYTES_A_VALUE * sum(_num_values(layer.output_shape) for layer in self.layers)

    @property
    def parameter_bytes(self) -> int:
        """Memory of the parameters, without gradients and optimiser state."""
        return BYTES_A_VALUE * self.parameters

    @property
    def total_bytes(self) -> int:
        """Images, activations and parameters."""
        return self.input_bytes + self.activation_bytes + self.parameter_bytes


def summarise(network: nn.Module, *, size_px: int = 32, batch_size: int = 1) -> Summary:
    """Summary of `network`, in evaluation mode, for `batch_size` square images of `size_px` with three channels.

    Works on a copy without values (the meta device): it computes nothing and leaves the network as it is. Raises
    `ValueError` for sizes below 1 and for images that the network cannot take.
    """
    for setting, value in (("size", size_px), ("batch", batch_size)):
        if value < 1:
            raise ValueError(f"{setting}: got {value}, takes a whole number above 0")
    from torch.utils.flop_counter import FlopCounterMode

    blank = copy.deepcopy(network).to("meta").eval()
    input_shape = (batch_size, 3, size_px, size_px)
    counter = FlopCounterMode(display=False)
    recorder = _Recorder(blank, counter)
    with torch.no_grad(), counter:
        try:
            blank(torch.empty(input_shape, device="meta"))
        except RuntimeError as error:
            raise ValueError(f"size: got {size_px}, which the network cannot take: {error}") from error
    return Summary(
        layers=recorder.layers(batch_size),
        input_shape=input_shape,
        parameters=sum(p.numel() for p in network.parameters()),
        trainable_parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
        flops=counter.get_total_flops() // batch_size,
    )


class _Recorder:
    """Forward hooks on every module, which note the calls in the order in which they end.

    FLOPs come from a counter of the operations, not from the layers' shapes, so that convolutions called as functions
    count too; a call's own are those between its start and its end without those of the calls inside it.
    """

    def __init__(self, network: nn.Module, counter: Any) -> None:
        self.network = network
        self.counter = counter
        self.names = {module: name for name, module in network.named_modules()}
        self.calls: list[tuple[nn.Module, tuple[int, ...], int]] = []
        # For every call under way: FLOPs before it, and those of the calls that ended inside it.
        self.open: list[list[int]] = []
        for module in self.names:
            module.register_forward_pre_hook(self._start)
            module.register_forward_hook(self._end)

    def _start(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.open.append([self.counter.get_total_flops(), 0])

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        before, inside = self.open.pop()
        spent = self.counter.get_total_flops() - before
        if self.open:
            self.open[-1][1] += spent
        self.calls.append((module, tuple(output.shape), spent - inside))

    def layers(self, batch_size: int) -> tuple[Layer, ...]:
        """The rows; containers and the network have one only where they work or own something themselves."""
        called = {module for module, _, _ in self.calls}
        seen: set[nn.Parameter] = set()
        rows = []
        for module, output_shape, flops in self.calls:
            parameters = set(_owned(module, called)) - seen
            seen |= parameters
            num = sum(p.numel() for p in parameters)
            if (module is self.network or isinstance(module, CONTAINERS)) and not num and not flops:
                continue
            name = self.names[module] or "(network)"
            rows.append(Layer(name, type(module).__name__, output_shape, num, flops // batch_size))
        return tuple(rows)


def _owned(module: nn.Module, called: set[nn.Module]) -> list[nn.Parameter]:
    """A module's parameters without those of the parts that are called as modules."""
    owned = list(module.parameters(recurse=False))
    for child in module.children():
        if child not in called:
            owned += _owned(child, called)
    return owned


def _num_values(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
