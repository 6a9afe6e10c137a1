"""Five modules that know nothing of slim go sparse, are cut, fine-tune, and come back thin from their checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from slim.channels import plan_of
from slim.lightning import ChannelPruning, SparseTraining, find_network, load
from slim.lightning.example import quiet

from .averages import averages
from .modules import fit, same

SIZE = 32


def pictures(*targets: Tensor, count: int = 4) -> DataLoader[Any]:
    x = torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, *targets), 2)


class ManualResNet(pl.LightningModule):
    """torchvision's ResNet-18 under manual optimization."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = resnet18(num_classes=4)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self.model(x), y))
        optimizer.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Segmenter(pl.LightningModule):
    """torchvision's LR-ASPP: a dict of maps, a backbone with squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.segmenter = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, masks = batch
        return F.cross_entropy(self.segmenter(x)["out"], masks)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class Detector(pl.LightningModule):
    """torchvision's SSDlite: lists of images and of boxes, a dict of losses."""

    def __init__(self) -> None:
        super().__init__()
        self.model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
        self.model.transform.min_size, self.model.transform.max_size = (64,), 64
        self.model.transform.fixed_size = (64, 64)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        targets = [{"boxes": boxes[None], "labels": torch.ones(1, dtype=torch.int64)} for boxes in batch[1]]
        return sum(self.model(list(batch[0]), targets).values())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class Gan(pl.LightningModule):
    """A generator and its discriminator, each with an optimizer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        up = [(8, 16, 1, 0), (16, 16, 2, 1), (16, 8, 2, 1)]
        blocks = [
            nn.Sequential(nn.ConvTranspose2d(a, b, 4, s, p, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b, s, p in up
        ]
        self.generator = nn.Sequential(*blocks, nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh())
        self.discriminator = nn.Sequential(
            nn.Conv2d(3, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.LeakyReLU(0.2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, 1),
        )  # fmt: skip

    def training_step(self, batch: Any, batch_idx: int) -> None:
        real = batch[0]
        second, first = self.optimizers()
        fake = self.generator(torch.randn(len(real), 8, 1, 1))
        self.toggle_optimizer(second)
        scores = self.discriminator(real), self.discriminator(fake.detach())
        self.manual_backward(F.softplus(-scores[0]).mean() + F.softplus(scores[1]).mean())
        second.step()
        second.zero_grad()
        self.untoggle_optimizer(second)
        self.toggle_optimizer(first)
        self.manual_backward(F.softplus(-self.discriminator(fake)).mean())
        first.step()
        first.zero_grad()
        self.untoggle_optimizer(first)

    def configure_optimizers(self) -> Any:
        parts = (self.discriminator, self.generator)
        return [torch.optim.Adam(part.parameters(), lr=1e-3, betas=(0.5, 0.99)) for part in parts]


class Siamese(pl.LightningModule):
    """Two views through one encoder, a momentum encoder that follows it, a projector of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = resnet18(num_classes=16)
        self.projector = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
        self.target = copy.deepcopy(self.encoder).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        with torch.no_grad():
            wanted = self.target(x.flip(-1))
        return -F.cosine_similarity(self.projector(self.encoder(x)), self.projector(wanted)).mean()

    def on_train_batch_end(self, *args: Any) -> None:
        for mine, other in zip(self.target.parameters(), self.encoder.parameters(), strict=True):
            mine.data.lerp_(other.data, 0.1)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([*self.encoder.parameters(), *self.projector.parameters()], lr=0.01, momentum=0.9)


LABELS = torch.tensor([0, 1, 2, 3])
MASKS = torch.randint(3, (4, SIZE, SIZE), generator=torch.Generator().manual_seed(1))
BOXES = torch.tensor([[4.0, 4.0, 20.0, 24.0]]).repeat(4, 1)


@pytest.mark.parametrize(
    ("kind", "data", "network", "extra", "also"),
    [
        (ManualResNet, pictures(LABELS), None, {}, []),
        (Segmenter, pictures(MASKS), None, {}, []),
        (Detector, pictures(BOXES), "model.backbone", {}, []),
        (Gan, pictures(), "generator", {}, []),
        (Siamese, pictures(), "encoder", {"copies": ["target"]}, averages()),
    ],
    ids=["resnet18_manual", "lraspp", "ssdlite", "gan", "siamese_ema"],
)
def test_sparse_cut_finetune_checkpoint_reload(
    kind: Any, data: Any, network: Any, extra: Any, also: Any, tmp_path: Path
) -> None:
    module = kind()
    others = {name: p.shape for name, p in module.named_parameters()}
    sparse = SparseTraining("l1", lam=1e-3, network=network)
    pruning = ChannelPruning(macs=0.6, at=1, recover={"batches": 1}, network=network, **extra)
    run = fit(module, sparse, pruning, *also, ModelCheckpoint(tmp_path, filename="last"), data=data, epochs=2)
    cut, net = pruning.cuts[0], find_network(module, network)
    assert cut.difference < 1e-3
    assert cut.after["macs"] <= 0.6 * cut.before["macs"]
    assert sparse.stopped
    assert sparse.law.state_dict()["step"] == 2
    assert plan_of(net) == cut.plan
    held = [id(p) for optimizer in run.optimizers for group in optimizer.param_groups for p in group["params"]]
    assert all(held.count(id(p)) == 1 for p in module.parameters() if p.requires_grad)
    # Only the named network is touched, and its copies.
    mine = {id(p) for part in (net, *([module.target] if extra else [])) for p in part.parameters()}
    assert all(p.shape == others[name] for name, p in module.named_parameters() if id(p) not in mine)
    with quiet():
        reloaded = (kind.load_from_checkpoint(tmp_path / "last.ckpt"), load(kind, tmp_path / "last.ckpt"))
    assert all(same(other, module) for other in reloaded)
