"""The jobs of the table: each is one command line of ``train.py``, so that anyone can run any row alone.

Equal cost within a network: every way of training gets the same number of epochs in all, the teacher's shown apart.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Network:
    """One network on one data set, and the budgets it is cut to.

    Attributes:
        epochs: where they are not the scale's.
        target: overrides of ``target`` alone.
        seeds: where they are not the scale's.
    """

    name: str
    overrides: tuple[str, ...]
    budgets: tuple[str, ...]
    epochs: int | None = None
    target: tuple[str, ...] = ()
    seeds: int | None = None


@dataclass(frozen=True)
class Scale:
    """How much of it: the paper's size for a GPU, or what a processor finishes.

    Attributes:
        epochs: of every way of training, sparse training and fine-tuning together, unless a network has its own.
        common: overrides of every job.
        networks: what is trained.
        ways: names in :data:`WAYS`.
        seeds: one job each, unless a network has more of its own.
    """

    epochs: int
    common: tuple[str, ...]
    networks: tuple[Network, ...]
    ways: tuple[str, ...]
    seeds: int


@dataclass(frozen=True)
class Job:
    """One run; ``needs`` is the job whose network teaches it, and ``rival`` another program's way of cutting."""

    name: str
    overrides: tuple[str, ...]
    needs: str | None = None
    rival: bool = False


WAYS = {
    "paper": ("penalty=l1", "recovery=none"),
    # What goes is gone when the learning rate first falls: afterwards the rest cannot make up for it.
    "target": ("penalty=target", "penalty.start=0.2", "penalty.end=0.5"),
    "uniform": ("penalty=l1", "penalty.lam=0", "sparse.shrink=null", "criterion=uniform", "recovery=none"),
    "scratch": ("penalty=l1", "schedule=scratch"),
}
"""Overrides on top of a network's; ``<way>-taught`` adds the dense network of the same seed as a teacher."""

RIVALS = ("torch-pruning",)

CIFAR10, CIFAR100 = "data=cifar10", "data=cifar100"
_HALF = "prune.ratio=null prune.macs=0.5"
_THIRD = "prune.ratio=null prune.macs=0.3"
_SMALL_VGG = "model.widths=[32,M,64,M,128,128,M,256,256]"
_NARROW_VGG = "model.widths=[16,M,32,M,64,64,M,128,128]"

_CAP = "prune.max_layer_ratio=0.9"
"""A tenth of every layer stays with everybody, as with ``target``: a global threshold alone left one channel of 128."""

_UNTAUGHT = ("paper", "target", "uniform", "torch-pruning")
_EVERY = (*_UNTAUGHT, *(f"{way}-taught" for way in _UNTAUGHT))

PAPER = Scale(
    epochs=320,
    # Published figures are of training on all images; a few are held out for what a run decides by them.
    common=("trainer.precision=bf16", "data.val_fraction=0.02"),
    networks=(
        Network("vgg19-c10", (CIFAR10, "model=vgg", "model.depth=19"), ("prune.ratio=0.7",)),
        Network("vgg19-c100", (CIFAR100, "model=vgg", "model.depth=19"),
                ("prune.ratio=0.5", "prune.ratio=null prune.macs=0.112")),
        Network("preresnet164-c10", (CIFAR10, "model=preresnet", "prune.residual=select", "sparse.shrink=0.6"),
                ("prune.ratio=0.4", "prune.ratio=0.6")),
        Network("preresnet164-c100", (CIFAR100, "model=preresnet", "prune.residual=select", "sparse.shrink=0.6"),
                ("prune.ratio=0.4", "prune.ratio=0.6")),
        Network("densenet40-c10", (CIFAR10, "model=densenet", "prune.residual=select", "sparse.shrink=0.6"),
                ("prune.ratio=0.4", "prune.ratio=0.7")),
        Network("densenet40-c100", (CIFAR100, "model=densenet", "prune.residual=select", "sparse.shrink=0.6"),
                ("prune.ratio=0.4", "prune.ratio=0.6")),
        Network("resnet56-c10", (CIFAR10, "model=resnet", "model.depth=56"), ("prune.ratio=null prune.macs=0.476",)),
        Network("vgg16-c10", (CIFAR10, "model=vgg", "model.depth=16"), (_HALF,)),
        # 30 + 30 epochs, and of each hidden layer the same share: a global threshold emptied layers (section 4.4).
        Network("mlp-mnist",
                ("data=mnist", "model=mlp", "scheduler=thirds", "data.augment=false", "trainer.precision=fp32"),
                ("prune.ratio=0.8 prune.strategy=layer",), epochs=60,
                target=("penalty.start=0.1", "penalty.end=0.33")),
    ),
    ways=_EVERY,
    seeds=3,
)  # fmt: skip

PROCESSOR = Scale(
    epochs=40,
    common=("sparse.shrink=0.6", "sparse.lr=0.1", "finetune.lr=0.05", "baseline.lr=0.1", "data.batch_size=128",
            "trainer.channels_last=true", _CAP),
    networks=(
        # Two more: at 30% of the MACs two did not tell `target` and the uniform cut apart.
        Network("narrow-vgg-c10", (CIFAR10, "model=vgg", _NARROW_VGG), (_HALF, _THIRD), seeds=4),
        Network("resnet20-c10", (CIFAR10, "model=resnet", "model.depth=20"), (_HALF, _THIRD)),
        Network("vgg-c10", (CIFAR10, "model=vgg", _SMALL_VGG), (_HALF, _THIRD)),
        Network("resnet56-c10", (CIFAR10, "model=resnet", "model.depth=56"), (_HALF, _THIRD)),
    ),
    ways=_EVERY,
    seeds=2,
)  # fmt: skip

CORE = Scale(
    epochs=40,
    common=("sparse.shrink=0.6", "sparse.lr=0.1", "finetune.lr=0.05", "baseline.lr=0.1", "data.batch_size=64",
            "data.limit_train=5000", "trainer.precision=fp32", "figures=false", "latency_seconds=0.2", _CAP),
    networks=(
        # In so few steps it is the same.
        Network("narrow-vgg-c10", (CIFAR10, "model=vgg", _NARROW_VGG), (_HALF, _THIRD),
                target=("penalty.start=0.3", "penalty.end=0.7")),
        Network("resnet20-c10", (CIFAR10, "model=resnet", "model.depth=20", "trainer.precision=bf16"), (_HALF, _THIRD)),
    ),
    ways=_EVERY,
    seeds=2,
)  # fmt: skip
"""A tenth of the images and small networks: what one core finishes in hours."""

SMOKE = Scale(
    epochs=2,
    common=("data=digits", "data.image_size=8", "data.limit_train=128", "data.limit_test=64", "data.batch_size=32",
            "latency_seconds=0.01", "figures=false", "trainer.precision=fp32", "recovery.recalibrate_batches=1"),
    networks=(Network("tiny", ("model=vgg", "model.widths=[8,M,8]"), (_HALF,)),),
    ways=("target", "torch-pruning", "paper-taught"),
    seeds=1,
)  # fmt: skip
"""Digits and a network of two layers: whether all of this runs, in seconds."""

SCALES = {"paper": PAPER, "processor": PROCESSOR, "core": CORE, "smoke": SMOKE}


def jobs(scale: Scale) -> list[Job]:
    """Every job of a scale, teachers before those they teach, whole seeds first."""
    found = []
    for seed in range(max(network.seeds or scale.seeds for network in scale.networks)):
        for network in (each for each in scale.networks if seed < (each.seeds or scale.seeds)):
            common = _merged((f"seed={seed}",), scale.common, network.overrides)
            epochs = network.epochs or scale.epochs
            dense = f"{network.name}/dense/s{seed}"
            found.append(Job(dense, (*common, "phases=[baseline]", f"baseline.epochs={epochs}")))
            # A dense network taught by a dense one: the share of the gain that is the teacher's.
            found.append(_dense_taught(network, common, epochs, seed, dense))
            for budget in network.budgets:
                found += [_cut(network, common, epochs, seed, budget, way, dense) for way in scale.ways]
    return found


def _dense_taught(network: Network, common: tuple[str, ...], epochs: int, seed: int, dense: str) -> Job:
    free = ("penalty=l1", "penalty.lam=0", "sparse.shrink=null", "phases=[sparse]", f"sparse.epochs={epochs}")
    taught = ("sparse.distill.teacher={teacher}",)
    return Job(f"{network.name}/dense-taught/s{seed}", _merged(common, free, taught), needs=dense)


def _cut(network: Network, common: tuple[str, ...], epochs: int, seed: int, budget: str, way: str, dense: str) -> Job:
    """Half of the epochs before the cut as in the paper; all of them with ``target``, which needs none after it."""
    name, taught_way = way.removesuffix("-taught"), way.endswith("-taught")
    length = {"sparse": epochs} if name == "target" else {"sparse": epochs // 2, "finetune": epochs - epochs // 2}
    own = network.target if name == "target" else ()
    order = ",".join(("sparse", "prune", "finetune")[: len(length) + 1])
    phases = (f"phases=[{order}]", *(f"{phase}.epochs={count}" for phase, count in length.items()))
    taught = tuple(f"{phase}.distill.teacher={{teacher}}" for phase in length if taught_way)
    amount = budget.replace("prune.", "").replace("ratio=null ", "").replace(" strategy=layer", "").replace("=", "-")
    return Job(
        f"{network.name}/{amount}/{way}/s{seed}",
        _merged(common, tuple(budget.split()), WAYS.get(name, WAYS["paper"]), own, phases, taught),
        needs=dense if taught_way else None,
        rival=name in RIVALS,
    )


def _merged(*parts: tuple[str, ...]) -> tuple[str, ...]:
    """All overrides; of those with one key the last."""
    found: dict[str, str] = {}
    for item in (item for part in parts for item in part):
        found[item.partition("=")[0]] = item
    return tuple(found.values())
