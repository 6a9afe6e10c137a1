"""Boxes on images: python predict.py FOLDER_OR_IMAGE [model.onnx]. Needs onnxruntime, numpy, Pillow to read files."""

import json
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def read(path: Path, size: list[int]) -> tuple[Any, tuple[int, int]]:
    """An image file as training saw it, upright and scaled to height and width, and its own width and height."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I"):  # 16 bits: Pillow would take all above 255 for white
        image = Image.fromarray((np.asarray(image) // 257).astype("u1"))
    image = image.convert("RGB")
    scaled = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(scaled, "f4").transpose(2, 0, 1)[None] / 255, image.size


def overlap(box: Any, others: Any) -> Any:
    """Intersection over union of a box (4,) with others (n, 4)."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    common = sides.clip(0).prod(1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (box, others)]
    return common / np.maximum(areas[0] + areas[1] - common, 1e-12)


def choose(scores: Any, boxes: Any, choice: Any) -> list[tuple[float, int, Any]]:
    """Detections of an image, best first: score, label, box; of its scores (anchors, labels) and boxes (anchors, 4)."""
    flat, labels = scores.reshape(-1), scores.shape[1]
    cells = np.arange(len(flat)).reshape(scores.shape)
    if choice["levels"] is None:
        groups = list(cells.T[choice["first_label"] :])
    else:
        groups = [part.reshape(-1) for part in np.split(cells, np.cumsum(choice["levels"])[:-1])]
    best = [group[np.argsort(-flat[group], kind="stable")[: choice["topk_candidates"]]] for group in groups]
    left = np.concatenate([group[flat[group] > choice["score_thresh"]] for group in best])
    left = left[np.argsort(-flat[left], kind="stable")]
    found: list[tuple[float, int, Any]] = []
    while len(left) and len(found) < choice["detections_per_img"]:
        first, left = left[0], left[1:]
        box = boxes[first // labels]
        found.append((float(flat[first]), int(first % labels), box))
        same = left % labels == first % labels
        left = left[~(same & (overlap(box, boxes[left // labels]) > choice["nms_thresh"]))]
    return found


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end quietly when a reader such as head has seen enough
    if len(sys.argv) not in (2, 3) or not Path(sys.argv[1]).exists():
        print(f"{__doc__} Got {sys.argv[1:]}.", file=sys.stderr)
        sys.exit(2)
    place = Path(sys.argv[1])
    model = sys.argv[2] if len(sys.argv) > 2 else str(Path(__file__).with_name("model.onnx"))
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    noted, needed = session.get_modelmeta().custom_metadata_map, ("choice", "size", "classes")
    if missing := [key for key in needed if key not in noted]:
        print(f"{model} does not say how it reads images: it lacks {', '.join(missing)}.", file=sys.stderr)
        sys.exit(2)
    told = {key: json.loads(noted[key]) for key in needed}  # tools that change the file note things in other forms
    unreadable = 0
    files = [place] if place.is_file() else sorted(place.rglob("*"))
    for path in (path for path in files if path.suffix.lower() in Image.registered_extensions() or path == place):
        try:
            pixels, (width, height) = read(path, told["size"])
        except Exception as error:  # Pillow raises many kinds for damaged files
            print(f"{path}: {error}", file=sys.stderr)
            unreadable += 1
            continue
        scores, boxes = session.run(None, {session.get_inputs()[0].name: pixels})
        for score, label, box in choose(scores[0], boxes[0], told["choice"]):
            corners = " ".join(f"{value:.1f}" for value in box * [width, height, width, height])
            print(f"{path}\t{told['classes'][label]}\t{score:.3f}\t{corners}")
    sys.exit(1 if unreadable else 0)
