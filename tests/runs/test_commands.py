"""Tasks on the network of a run, found as the run was configured."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import slim
import train
from slim.artifact import classes_in, read_header
from slim.runs import directory
from slim.runs.state import State
from slim.runs.weights import other_classes
from slim.sensitivity.forward_cache import ForwardCache
from tests.runs.tiny import FOUR_STEPS, TINY, run


def test_sensitivity_of_a_run_goes_on_and_its_caps_are_obeyed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "run"
    run(place, FOUR_STEPS, "phases=[baseline]", "baseline.epochs=1")
    line = ["task=sensitivity", f"checkpoint={place}", "sensitivity.shares=[0.25,0.5]", "sensitivity.max_drop=1"]
    capfd.readouterr()
    assert train.main(line) == 0
    first = json.loads(capfd.readouterr().out)
    rows = (place / "sensitivity.csv").read_text().splitlines()
    assert len(rows) == 2 + 2 * 2  # a head of two lines; two layers, two shares
    assert (place / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    assert first["images"] == 13
    assert not (place / "sensitivity").exists(), "figures=false"
    before = (place / "sensitivity.csv").read_bytes()

    def never(*_: object) -> None:
        raise AssertionError("what is in the table is not measured again")

    monkeypatch.setattr(ForwardCache, "run_from", never)
    assert train.main([*line, "figures=true"]) == 0
    assert (place / "sensitivity.csv").read_bytes() == before
    assert json.loads(capfd.readouterr().out) == first
    check_heat_map(place / "sensitivity")
    caps = first["override"]
    assert caps == "'prune.overrides={features.0:{max_layer_ratio:0.5},features.4:{max_layer_ratio:0.5}}'"
    report = run(tmp_path / "capped", caps.strip("'"), "prune.ratio=0.9", "sparse.epochs=1", "phases=[sparse,prune]")
    assert report["achieved"]["ratio"] == 0.5
    assert train.main([*line, "seed=1"]) == 0, "the seed of the network does not matter: it is read"


def check_heat_map(folder: Path) -> None:
    """In TensorBoard: a picture with something in it."""
    (event,) = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload().Images("sensitivity/heat_map")
    picture = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB"))
    assert picture.shape == (event.height, event.width, 3) and min(picture.shape[:2]) > 200
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


def test_sensitivity_of_a_fresh_network(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    line = [*TINY, FOUR_STEPS, "task=sensitivity", "sensitivity.shares=[0.5]", "sensitivity.images=8", "criterion=l1"]
    assert train.main([*line, f"hydra.run.dir={tmp_path / 'fresh'}"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["csv"] == str(tmp_path / "fresh" / "sensitivity.csv") and Path(told["csv"]).is_file()
    assert told["images"] == 8
    assert train.main([*line, f"sensitivity.csv={told['csv']}", "criterion=random"]) == 2
    assert "the same analysis" in capfd.readouterr().err


def test_caps_of_layers_without_a_word_in_their_names_are_obeyed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As in ``nn.Sequential``: Hydra would read ``0`` as a number."""
    model = ["model=custom", "model._target_=tests.cli.networks.no_norm", "criterion=l1"]
    plain = [item for item in TINY if not item.startswith("model.")]
    line = [*plain, *model, "task=sensitivity", "sensitivity.shares=[0.25]", "sensitivity.max_drop=1"]
    assert train.main([*line, f"hydra.run.dir={tmp_path / 'fresh'}"]) == 0
    caps = shlex.split(json.loads(capfd.readouterr().out)["override"])
    report = run(tmp_path / "run", *model, *caps, "phases=[baseline,prune]", "baseline.epochs=1")
    assert report["widths"]["0"] == [8, 6]


def test_ctrl_c_keeps_what_is_measured(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, calls = ForwardCache.run_from, iter(range(100))

    def stopping(self: ForwardCache, *args: object) -> object:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return answer(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(ForwardCache, "run_from", stopping)
    table = tmp_path / "s.csv"
    line = [*TINY, "task=sensitivity", "sensitivity.shares=[0.5]", f"sensitivity.csv={table}"]
    assert train.main(line) == 130
    assert f"sensitivity.csv={table}" in capfd.readouterr().err
    assert len(table.read_text().splitlines()) == 3
    assert train.main(line) == 0
    assert next(calls) == 3, "one layer was left"


def test_a_network_without_scales_can_be_evaluated_where_nothing_can_be_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not be trained sparsely, which nobody asks for here; an evaluation leaves no run directory."""
    from tests.cli.networks import no_norm

    monkeypatch.setattr(directory.os, "access", lambda *_: False)
    slim.save(tmp_path / "plain.safetensors", no_norm(10, 1))
    line = [item for item in TINY if not item.startswith("model.")]
    line += ["model=custom", "model._target_=tests.cli.networks.no_norm", "task=evaluate"]
    assert train.main([*line, f"checkpoint={tmp_path / 'plain.safetensors'}"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["params"] == sum(p.numel() for p in no_norm(10, 1).parameters())
    assert told["images"] == 64, "data.limit_test"


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes that differ in brightness; ``dark`` has the same test images, and training images that are darker."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    chance = np.random.default_rng(0)
    for part, label in ((part, label) for part in ("train", "test") for label in (0, 1)):
        for index in range(16):
            pixels = chance.integers(0, 100, (8, 8, 3)) + 60 * label
            for name, factor in (("light", 1), ("dark", 4 if part == "train" else 1)):
                place = tmp_path / name / part / str(label)
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray((pixels // factor).astype(np.uint8)).save(place / f"{index}.png")
    return tmp_path


OF_PHOTOS = ("data=image_folder", "data.limit_train=null", "data.limit_test=null", "data.batch_size=8")


def test_images_are_normalized_as_the_network_was_trained(photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Not by the training images of the folder on which it is evaluated."""
    run(photos / "run", *OF_PHOTOS, f"data.dir={photos / 'light'}", "phases=[sparse,prune]", "sparse.epochs=4")

    def accuracy(*overrides: str) -> float:
        capfd.readouterr()
        assert train.main(["task=evaluate", f"checkpoint={photos / 'run'}", *overrides]) == 0
        return float(json.loads(capfd.readouterr().out)["accuracy"])

    dark = f"data.dir={photos / 'dark'}"
    assert accuracy() == accuracy(dark) > 0.9
    assert accuracy(dark, "data.mean=[5,5,5]") == 0.5, "what is said on the command line counts"


def test_classes_of_other_names_are_told(photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(photos / "run", *OF_PHOTOS, f"data.dir={photos / 'light'}", "phases=[baseline]", "baseline.epochs=1")
    artifact = photos / "run" / "model.safetensors"
    assert classes_in(read_header(artifact).metadata) == ["0", "1"]
    for part in ("train", "test"):
        (photos / "dark" / part / "0").rename(photos / "dark" / part / "2")
    line = ["task=evaluate", f"checkpoint={photos / 'run'}"]
    capfd.readouterr()
    assert train.main([*line, f"data.dir={photos / 'light'}"]) == 0
    assert "names differ" not in capfd.readouterr().err
    assert train.main([*line, f"data.dir={photos / 'dark'}"]) == 0
    assert "their names differ: 0 is 0 in run, 1 in the data" in capfd.readouterr().err
    assert other_classes(SimpleNamespace(class_names=(0, 1)), artifact) is None
    assert other_classes(SimpleNamespace(), artifact) is None
    with pytest.raises(slim.SlimError, match=r"order of training\. Got 1, 0 in the data and 0, 1 in "):
        other_classes(SimpleNamespace(class_names=("1", "0")), artifact)


@pytest.fixture
def grays(tmp_path: Path) -> list[str]:
    """A folder of ten classes, two images of each to train on and two to test."""
    for part, label in ((part, label) for part in ("train", "test") for label in range(10)):
        (place := tmp_path / "folder" / part / str(label)).mkdir(parents=True)
        for index in range(2):
            Image.fromarray(np.full((8, 8), 20 * label + index, np.uint8)).save(place / f"{index}.png")
    return ["data=image_folder", f"data.dir={tmp_path / 'folder'}", "data.batch_size=8"]


def test_a_run_is_evaluated_on_other_data_with_the_model_that_it_trained(
    tmp_path: Path, grays: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """The recipe of digits names a smaller VGG than that of a folder."""
    recipe = ["+experiment=vgg_slim", *(item for item in TINY if not item.startswith("model.widths"))]
    run(tmp_path / "run", *recipe, "phases=[sparse,prune]", "sparse.epochs=1", "data.image_size=16")
    capfd.readouterr()
    line = ["task=evaluate", f"checkpoint={tmp_path / 'run'}", *grays]
    assert train.main(line) == 2
    assert "Set data.in_channels=1" in capfd.readouterr().err
    assert train.main([*line, "data.in_channels=1"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["images"], found["data"], found["input_shape"]) == (20, "image_folder", "1x1x16x16")
    assert train.main([*line, "data.in_channels=1", "model.widths=[8,M,8]"]) == 2, "what is asked for counts"
    assert "whose plan does not fit" in capfd.readouterr().err


def test_a_run_is_evaluated_on_data_that_lack_options_of_its_own(
    tmp_path: Path, grays: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    options = ("data.in_channels=1", "data.limit_train=null", "data.limit_test=null")
    run(tmp_path / "run", *grays, *options, "phases=[baseline]", "baseline.epochs=1")
    capfd.readouterr()
    line = ["task=evaluate", f"checkpoint={tmp_path / 'run'}", "data=digits", "data.limit_test=7"]
    assert train.main(line) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["images"], found["data"], found["input_shape"]) == (7, "digits", "1x1x8x8")


def test_a_run_goes_on_where_its_images_lie_now(photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Another machine has them elsewhere, and less memory."""
    images = (photos / "light" / "train").rename(photos / "before")
    run(photos / "run", *OF_PHOTOS, f"data.dir={images}", "phases=[baseline]", "baseline.epochs=1")
    state = State.load(photos / "run")
    state.finished = False
    state.save()
    moved = images.rename(photos / "now")
    resume = [f"resume={photos / 'run'}", "data.num_workers=0", "data.memory_budget_gb=1"]
    assert train.main(resume) == 2
    assert f"data.dir={images}" in capfd.readouterr().err
    assert train.main([*resume, f"data.dir={photos / 'dark' / 'train'}"]) == 2, "other images"
    assert "the images it began with" in capfd.readouterr().err
    assert train.main([*resume, f"data.dir={moved}"]) == 0
    assert train.main([f"resume={photos / 'run'}"]) == 0, "remembered"


def test_a_run_does_not_go_on_with_other_images(photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """They would be dealt anew to training, validation and test."""
    run(photos / "run", *OF_PHOTOS, f"data.dir={photos / 'light' / 'train'}", "phases=[baseline]", "baseline.epochs=1")
    state = State.load(photos / "run")
    state.finished = False
    state.save()
    names = sorted((photos / "light" / "train" / "0").iterdir())
    for path in names:
        path.rename(path.with_name(f"x{path.name}"))
    assert train.main([f"resume={photos / 'run'}"]) == 2
    assert "Got other files, {'train': 23, 'val': 3} as before." in capfd.readouterr().err
    for path in names:
        path.with_name(f"x{path.name}").rename(path)
    (photos / "light" / "train" / "0" / "0.png").unlink()
    assert train.main([f"resume={photos / 'run'}"]) == 2
    assert "Got {'train': 23, 'val': 2}, it began with {'train': 23, 'val': 3}" in capfd.readouterr().err
