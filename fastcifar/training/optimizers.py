"""Optimisers: Muon for convolutions, the library's for everything else."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fastcifar.schema import OptimizerConfig

_A, _B, _C = 3.4445, -4.7750, 2.0315
"""Jordan's coefficients (kellerjordan.github.io/posts/muon): steepest at zero, so that few steps are enough."""
_TINY = 1e-7
"""Added to a norm before dividing by it: what is zero stays zero."""


def orthogonalise(matrices: Tensor, steps: int = 3) -> Tensor:
    """Push the singular values of matrices [..., rows, columns] to about 1, keeping the singular vectors.

    Newton-Schulz iteration of odd quintics; the values end between about 0.7 and 1.2, which trains as well as 1 does.
    """
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    # The range of float16 is too small for a Gram matrix; on a GPU fewer launches matter more than fewer products.
    by_gram = x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and x.device.type == "cpu")
    x = _by_gram(x, steps) if by_gram else _one_by_one(x, steps)
    return x.mT if tall else x


def _one_by_one(matrices: Tensor, steps: int) -> Tensor:
    x = matrices.reshape(-1, *matrices.shape[-2:])
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + _TINY)
    for _ in range(steps):
        gram = x @ x.mT
        # a x + (b gram + c gram gram) x, in three products.
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.view_as(matrices)


def _by_gram(x: Tensor, steps: int) -> Tensor:
    """The same with two products of the longer side in all, not two a step.

    Each step multiplies x by a polynomial of its Gram matrix: what these make together is had from that matrix alone.
    """
    gram = _product(x, x.mT)
    norm = gram.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=torch.float32).sqrt()
    scale = 1 / (norm + _TINY)[..., None, None]
    gram = (gram * scale**2).to(x.dtype)
    left = scale
    for step in range(steps):
        polynomial = _product(gram, gram).mul_(_C).add_(gram, alpha=_B)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(_A)
        left = _product(polynomial, left) if step else (polynomial * left).to(x.dtype)
        if step < steps - 1:
            gram = _product(_product(polynomial, gram), polynomial)
    return _product(left, x)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, of one dtype."""
    # Of float32 torch has MKL make it on a CPU, which takes no AVX-512 on one of AMD's: oneDNN is 2.5 times as fast.
    if (
        left.ndim == 2
        and left.dtype == torch.float32
        and left.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
    ):
        return torch.ops.mkldnn._linear_pointwise(left, right.mT, None, "none", [], "")
    return left @ right


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, for convolution weights [out, in, kh, kw] read as [out, kh * kw * in].

    Before each update a weight is scaled back to norm sqrt(out), as airbench94_muon does: batch norm makes its scale
    meaningless, and a fixed norm keeps the relative step what `lr` says. On a GPU weights of one shape are updated as
    one stack, in bfloat16.

    dtype: what the updates of a CPU's weights are made in, None for the weights' own.
    """

    def __init__(
        self, params: list[nn.Parameter], lr: float, momentum: float, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient."""
        assert closure is None, "Muon takes no closure"
        for group in self.param_groups:
            for weights in _by_shape([p for p in group["params"] if p.grad is not None]):
                self._step_stack(weights, group["lr"], group["momentum"])

    def _step_stack(self, weights: list[Tensor], lr: float, momentum: float) -> None:
        grads = [weight.grad for weight in weights if weight.grad is not None]
        for weight in weights:
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, grads)
        directions = torch._foreach_add(grads, buffers, alpha=momentum)
        scales = [len(w) ** 0.5 / norm for w, norm in zip(weights, torch._foreach_norm(weights), strict=True)]
        torch._foreach_mul_(weights, scales)
        updates = _updates(directions, self._dtype)
        if updates[0].dtype == weights[0].dtype:
            torch._foreach_add_(weights, updates, alpha=-lr)
        else:
            for weight, update in zip(weights, updates, strict=True):
                weight.add_(update, alpha=-lr)


def _updates(directions: Sequence[Tensor], dtype: torch.dtype | None) -> list[Tensor]:
    """Directions of one shape [out, in, kh, kw], each orthogonalised as a matrix [out, kh * kw * in]."""
    # The order of columns makes no difference to the result; this is the one in which channels-last memory has them.
    matrices = [direction.permute(0, 2, 3, 1).flatten(1) for direction in directions]
    if matrices[0].is_cuda:
        updates = list(orthogonalise(torch.stack(matrices).bfloat16()).to(matrices[0].dtype).unbind())
    else:
        updates = [orthogonalise(matrix if dtype is None else matrix.to(dtype)) for matrix in matrices]
    out, channels, height, width = directions[0].shape
    return [update.view(out, height, width, channels).permute(0, 3, 1, 2) for update in updates]


def _by_shape(weights: list[Tensor]) -> list[list[Tensor]]:
    stacks: dict[torch.Size, list[Tensor]] = {}
    for weight in weights:
        stacks.setdefault(weight.shape, []).append(weight)
    return list(stacks.values())


def build(
    network: nn.Module, config: OptimizerConfig, batch_size: int, dtype: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """The optimisers of a network's trainable parameters; each group keeps its `"peak_lr"` and `"peak_momentum"`.

    dtype: what a step computes in. The bias of a whitening stem gets a group of its own, tagged `"whiten"`: it is
    trained for a few epochs only.
    """
    optimizers = _muon(network, config, batch_size, dtype) if config.name == "muon" else [_plain(network, config)]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
            group["peak_momentum"] = group.get("momentum", 0.0)
    return optimizers


def _muon(
    network: nn.Module, config: OptimizerConfig, batch_size: int, dtype: torch.dtype
) -> list[torch.optim.Optimizer]:
    trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
    filters = [p for p in trainable.values() if p.ndim == 4]
    head = [p for p in trainable.values() if p.ndim == 2]
    whiten = [p for name, p in trainable.items() if p.ndim == 1 and name.startswith("whiten.")]
    biases = [p for name, p in trainable.items() if p.ndim == 1 and not name.startswith("whiten.")]

    def group(params: list[nn.Parameter], lr: float) -> dict[str, object]:
        # The loss is a mean, the rates are for a sum: scaling by the batch size is the linear scaling rule. Dividing
        # the decay by the rate takes the rate out of it again, so a step at peak rate shrinks by decay * batch size.
        return {"params": params, "lr": lr * batch_size, "weight_decay": config.weight_decay / lr}

    undecayed = {} if config.decay_norms else {"weight_decay": 0.0}
    groups = [
        {**group(whiten, config.bias_lr), **undecayed, "whiten": True},
        {**group(biases, config.bias_lr), **undecayed},
        group(head, config.head_lr),
    ]
    rest = torch.optim.SGD(
        [g for g in groups if g["params"]], lr=1.0, momentum=config.sgd_momentum, nesterov=config.sgd_momentum > 0
    )
    # float16 is for GPUs alone, whose updates are bfloat16 whatever a step computes in.
    products = torch.bfloat16 if dtype == torch.bfloat16 else None
    return [rest, Muon(filters, config.lr, config.momentum, products)]


def _plain(network: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    trainable = [p for p in network.parameters() if p.requires_grad]
    matrices = [p for p in trainable if p.ndim > 1]
    vectors = [p for p in trainable if p.ndim == 1]
    vector_decay = config.weight_decay if config.decay_norms else 0.0
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": vector_decay},
    ]
    groups = [g for g in groups if g["params"]]
    if config.name in ("sgd", "nesterov"):
        nesterov = config.name == "nesterov"
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov)
    kinds = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "adagrad": torch.optim.Adagrad,
        "adadelta": torch.optim.Adadelta,
    }
    return kinds[config.name](groups, lr=config.lr)
