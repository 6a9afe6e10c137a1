"""Anybody's loaders inside a run: an order for every epoch, and after a resume the same batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, TensorDataset

from slim.data import SegmentationDigits
from slim.errors import RunFailed
from slim.runs.evaluation import BATCHES_WITHOUT_VALIDATION, validation_batches
from slim.runs.failures import explained
from slim.runs.loaders import ResumableLoader, resumable

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


class Noise(Dataset[torch.Tensor]):
    """Another number whenever it is asked."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, position: int) -> torch.Tensor:
        return torch.randn(()) + 100 * position


def epochs(loader: ResumableLoader, count: int) -> list[list[float]]:
    return [[float(batch.sum()) for batch in loader] for _ in range(count)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_loader_gives_the_same_batches(workers: int) -> None:
    """Also where workers outlive an epoch."""

    def loader(**position: int) -> ResumableLoader:
        lasting = DataLoader(Noise(), batch_size=2, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
        made = ResumableLoader(lasting, (0, 1))
        if position:
            made.load_state_dict(position)
        return made

    whole = epochs(loader(), 3)
    assert whole[0] != whole[1]
    assert epochs(loader(epoch=1, batch=2), 2) == [whole[1][2:], whole[2]]


@pytest.mark.parametrize("limit", [2, 0.7])
def test_a_limited_epoch_ends_where_lightning_ends_it(limit: int | float) -> None:
    """The next one has batches of its own, not what was left of this one."""

    def loader() -> ResumableLoader:
        return ResumableLoader(DataLoader(Noise(), batch_size=2, shuffle=True), (0,), limit=limit)

    limited = loader()
    assert len(limited) == 3 and [len(epoch) for epoch in epochs(limited, 3)] == [2, 2, 2]
    assert limited.state_dict() == {"epoch": 3, "batch": 0}


def test_a_sampler_is_told_the_epoch() -> None:
    numbers: Any = range(20)
    loader = DataLoader(numbers, batch_size=20, sampler=DistributedSampler(numbers, 1, 0))
    wrapped = ResumableLoader(loader, (0,))
    orders = [next(iter(wrapped)).tolist() for _ in range(2)]
    wrapped.load_state_dict({"epoch": 1, "batch": 0})
    assert orders[0] != orders[1] == next(iter(wrapped)).tolist()


def test_validation_is_the_same_in_every_epoch() -> None:
    wrapped = ResumableLoader(DataLoader(Noise(), batch_size=2), (0,), same=True)
    next(iter(wrapped))  # Lightning looks at some batches first
    first, second = epochs(wrapped, 2)
    assert first == second and len(first) == 3


def test_pictures_come_in_another_order_every_epoch() -> None:
    data = SegmentationDigits(scenes=6, val_scenes=1, test_scenes=1, image_size=24, batch_size=1)
    with resumable(data, (0,), None, None):
        loader = data.train_dataloader()
        first, second = ([float(images.sum()) for images, _ in loader] for _ in range(2))
    assert sorted(first) == sorted(second) and first != second


def test_loaders_made_anew_for_every_epoch_go_on_where_the_last_one_ended() -> None:
    """As Lightning's reload_dataloaders_every_n_epochs makes them; also in a run that was resumed."""

    class Data(LightningDataModule):
        def train_dataloader(self) -> Any:
            return DataLoader(Noise(), batch_size=2, shuffle=True)

    def orders(count: int, position: dict[str, int] | None) -> list[list[float]]:
        data = Data()
        with resumable(data, (0,), None, position):
            return [[float(batch.sum()) for batch in data.train_dataloader()] for _ in range(count)]

    first, second, third = orders(3, None)
    assert first != second != third != first
    assert orders(2, {"epoch": 1, "batch": 2}) == [second[2:], third]


def test_a_stream_says_nothing_of_its_length() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(4))

    class Data(LightningDataModule):
        def train_dataloader(self) -> Any:
            return DataLoader(Stream())

    data = Data()
    with resumable(data, (0,), None, None) as position:
        assert [int(batch) for batch in data.train_dataloader()] == [0, 1, 2, 3] and position.state_dict() == {}


def test_an_error_in_a_worker_is_not_the_workers_death() -> None:
    with pytest.raises(RuntimeError, match="Caught RuntimeError in DataLoader worker"), explained(4):
        list(DataLoader([torch.zeros(1), torch.zeros(2)], batch_size=2, num_workers=1))  # type: ignore[arg-type]
    with pytest.raises(RunFailed), explained(4):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")


def test_what_stands_in_for_validation_is_the_same_every_time() -> None:
    """Or masked and rebuilt would be measured on different images, and so would recovery, before and after."""

    class Data(LightningDataModule):
        def train_dataloader(self) -> Any:
            return DataLoader(TensorDataset(torch.arange(100)), batch_size=4, shuffle=True)

    before = torch.get_rng_state()
    first, second = ([batch[0].tolist() for batch in validation_batches(Data())] for _ in range(2))
    assert first == second and len(first) == BATCHES_WITHOUT_VALIDATION
    assert torch.equal(torch.get_rng_state(), before)
