"""Views of test-time augmentation: which, with what weights, and for which images."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcifar.pipelines import Batch
from fastcifar.training.evaluation import DOUBT, predict


class Sensitive(nn.Module):
    """Logits that any mirroring and moving changes, of images that leave more and less doubt."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        generator = torch.Generator().manual_seed(0)
        self.weights = torch.randn(3 * 8 * 8, 5, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return x.flatten(1) @ self.weights / 8


@pytest.fixture
def batches() -> list[Batch]:
    images = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    images *= torch.linspace(0.1, 3, 40).reshape(-1, 1, 1, 1)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(40) % 5
    parts = (slice(0, 25), slice(25, 40))
    return [Batch(images[part], labels[part], None, None, torch.arange(40)[part]) for part in parts]


def by_hand(images: Tensor) -> dict[str, Tensor]:
    network = Sensitive()
    plain, mirrored = network(images), network(images.flip(3))
    padded = F.pad(images, (1, 1, 1, 1), "reflect")
    moved = [network(padded[:, :, y : y + 8, y : y + 8].flip(3) if flip else padded[:, :, y : y + 8, y : y + 8])
             for y in (0, 2) for flip in (False, True)]  # fmt: skip
    return {
        "none": plain,
        "mirror": (plain + mirrored) / 2,
        "mirror_translate": (plain + mirrored) / 4 + sum(moved) / 8,
    }


@pytest.mark.parametrize("tta", ["none", "mirror", "mirror_translate"])
def test_views_are_averaged_with_their_weights(tta: str, batches: list[Batch]) -> None:
    expected = by_hand(torch.cat([batch.images for batch in batches]))
    got = predict(Sensitive(), batches, tta, torch.float32)
    torch.testing.assert_close(got.logits, expected["none"])
    torch.testing.assert_close(got.tta_logits, expected[tta])


def test_selective_views_are_all_six_where_one_leaves_doubt_and_one_elsewhere(batches: list[Batch]) -> None:
    expected = by_hand(torch.cat([batch.images for batch in batches]))
    best = expected["none"].softmax(1).topk(2).values
    doubtful = best[:, 0] - best[:, 1] < DOUBT
    assert 5 < doubtful.sum() < 35
    network = Sensitive()
    got = predict(network, batches, "selective", torch.float32)
    torch.testing.assert_close(got.tta_logits[doubtful], expected["mirror_translate"][doubtful])
    torch.testing.assert_close(got.tta_logits[~doubtful], expected["none"][~doubtful])
    assert network.seen == 40 + 5 * int(doubtful.sum())


def test_selective_views_need_neither_doubt_nor_a_second_class() -> None:
    batch = Batch(torch.ones(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64), None, None, torch.arange(2))
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 1))
    assert predict(network, [batch], "selective", torch.float32).tta_logits.shape == (2, 1)
    sure = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    with torch.no_grad():
        sure[1].weight.zero_()
        sure[1].bias.copy_(torch.tensor([9.0, -9.0]))
    got = predict(sure, [batch], "selective", torch.float32)
    assert torch.equal(got.logits, got.tta_logits)
