"""Batches are a pure function of (seed, epoch, step)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from slim.data.loader import BatchLoader, Preprocessing
from slim.data.memory import MemorySource
from slim.errors import SlimError

Batch = tuple[torch.Tensor, torch.Tensor]


def loader(count: int = 50, batch_size: int = 8, train: bool = True, **options: Any) -> BatchLoader:
    images = torch.randint(0, 256, (count, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    source = MemorySource(images, torch.arange(count))
    preprocessing = Preprocessing((0.5,) * 3, (0.25,) * 3, 6, padding=2, mirror=True, augment=True)
    options.setdefault("seed", 0)
    return BatchLoader(source, torch.arange(count), preprocessing, batch_size=batch_size, train=train, **options)


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, second, strict=True)
    )


def test_same_seed_same_batches_and_every_iteration_is_the_next_epoch() -> None:
    one, other = loader(), loader()
    epochs = [list(one) for _ in range(3)]
    assert all(same(epoch, list(other)) for epoch in epochs)
    assert not same(epochs[0], epochs[1]) and not same(epochs[1], epochs[2])
    assert not same(epochs[0], list(loader(seed=1)))


def test_set_epoch_jumps() -> None:
    one, other = loader(), loader()
    epochs = [list(one) for _ in range(3)]
    other.set_epoch(2)
    assert same(list(other), epochs[2])
    other.sampler.set_epoch(0)
    assert same(list(other), epochs[0])


@pytest.mark.parametrize("step", range(7))
def test_a_checkpoint_resumes_with_the_next_batch(step: int) -> None:
    """Also at the end of an epoch, and also when the trainer says the epoch again."""
    straight = loader()
    expected = [batch for _ in range(3) for batch in straight]
    first = loader()
    list(first)
    iterator = iter(first)
    for _ in range(step):
        next(iterator)
    if step == len(first):
        assert list(iterator) == []
    state = first.state_dict()
    resumed = loader()
    resumed.load_state_dict(state)
    resumed.set_epoch(state["epoch"])
    assert same([*resumed, *(resumed if state["epoch"] == 1 else ())], expected[6 + step :])


def test_an_iteration_that_was_given_up_is_not_continued() -> None:
    one = loader()
    next(iter(one))
    expected = loader()
    expected.set_epoch(1)
    assert same(list(one), list(expected))


def test_asking_for_an_iterator_does_nothing() -> None:
    one = loader()
    iter(one)
    late = iter(one)
    one.set_epoch(4)
    expected = loader()
    expected.set_epoch(4)
    assert same(list(late), list(expected))


def test_augmentation_belongs_to_the_image_not_the_batch() -> None:
    def by_label(batches: list[Batch]) -> dict[int, torch.Tensor]:
        return {int(y): x for images, labels in batches for x, y in zip(images, labels, strict=True)}

    small, large = by_label(list(loader(48, 8))), by_label(list(loader(48, 16)))
    assert small.keys() == large.keys() and all(torch.equal(small[key], large[key]) for key in small)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_batch_of_one_process(world_size: int) -> None:
    together = list(loader(batch_size=4 * world_size))
    ranks = [list(loader(batch_size=4, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    for step, (_, labels) in enumerate(together):
        parts = torch.stack([batches[step][1] for batches in ranks], dim=1).flatten()
        assert torch.equal(parts, labels)


def test_evaluation_sees_every_image_once_in_order() -> None:
    for world_size in (1, 2, 3):
        parts = [loader(train=False, rank=rank, world_size=world_size) for rank in range(world_size)]
        labels = [torch.cat([y for _, y in part]) for part in parts]
        assert [part.samples for part in parts] == [len(found) for found in labels]
        assert torch.equal(torch.cat(labels).sort().values, torch.arange(50))
    batches = list(loader(train=False))
    assert len(batches) == len(loader(train=False)) == 7
    assert torch.equal(torch.cat([y for _, y in batches]), torch.arange(50))
    assert same(batches, list(loader(train=False, seed=9)))


def test_training_leaves_out_other_images_every_epoch() -> None:
    one = loader()
    assert len(one) == 6 == len(list(one))
    left_out = [set(range(50)) - {int(y) for _, labels in one for y in labels} for _ in range(4)]
    assert all(len(rest) == 2 for rest in left_out) and len({frozenset(rest) for rest in left_out}) > 1


def test_reading_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    list(loader())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("state", [{}, {"epoch": 1}, {"epoch": "x", "step": 0}, {"epoch": None, "step": 0}])
def test_a_strange_state_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(SlimError, match="epoch and step"):
        loader().load_state_dict(state)


def test_lightning_drives_it_and_resumes_mid_epoch(tmp_path: Any) -> None:
    """Three epochs straight see the same labels as a run that is stopped in the middle of the second."""
    import inspect
    import warnings

    import pytorch_lightning as pl

    class Recorder(pl.LightningModule):
        def __init__(self, stop: int | None = None) -> None:
            super().__init__()
            self.layer, self.seen, self.stop = torch.nn.Linear(1, 1), [], stop

        def training_step(self, batch: Batch, index: int) -> torch.Tensor:
            self.seen.append(batch[1].tolist())
            return self.layer(batch[0].mean().view(1, 1)).sum()

        def on_train_batch_end(self, *_: Any) -> None:
            if self.stop == len(self.seen):
                self.trainer.save_checkpoint(tmp_path / "stop.ckpt")

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.0)

    def fit(module: Recorder, **options: Any) -> list[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = pl.Trainer(
                max_epochs=3,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                default_root_dir=tmp_path,
            )
            trainer.fit(module, loader(), **options)
        return module.seen

    straight = fit(Recorder())
    assert straight == [labels.tolist() for one in [loader()] for _ in range(3) for _, labels in one]
    # Lightning 2.6 asks which pickles it may load; before, it does not.
    safely = {"weights_only": True} if "weights_only" in inspect.signature(pl.Trainer.fit).parameters else {}
    for stop in (1, 8, 12):
        fit(Recorder(stop))
        assert fit(Recorder(), ckpt_path=tmp_path / "stop.ckpt", **safely) == straight[stop:]


@pytest.mark.parametrize(("padding", "mirror"), [(2, False), (0, True), (0, False)])
def test_either_augmentation_works_alone(padding: int, mirror: bool) -> None:
    """Batches differ from the plain images as soon as there is one of the two."""
    images = torch.randint(0, 256, (32, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    source, index = MemorySource(images, torch.arange(32)), torch.arange(32)

    def batches(augment: bool) -> list[Batch]:
        way = Preprocessing((0.5,) * 3, (0.25,) * 3, 6, padding=padding, mirror=mirror, augment=augment)
        return list(BatchLoader(source, index, way, batch_size=8, train=True, seed=0))

    assert same(batches(True), batches(False)) == (not padding and not mirror)
