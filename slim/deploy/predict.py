"""Classes of images: python predict.py FOLDER_OR_IMAGE [model.onnx]. Needs onnxruntime, numpy, Pillow to read files."""

import json
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def read(path: Path, size: int, channels: int) -> Any:
    """An image file as training saw it: upright, its shorter side scaled to size, and the middle of that."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I"):  # 16 bits: Pillow would take all above 255 for white
        image = Image.fromarray((np.asarray(image) // 257).astype("u1"))
    image = image.convert("RGB" if channels == 3 else "L")
    width, height = (size * side // min(image.size) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    return np.asarray(image).reshape(size, size, channels)


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end quietly when a reader such as head has seen enough
    if len(sys.argv) not in (2, 3) or not Path(sys.argv[1]).exists():
        print(f"{__doc__} Got {sys.argv[1:]}.", file=sys.stderr)
        sys.exit(2)
    place = Path(sys.argv[1])
    model = sys.argv[2] if len(sys.argv) > 2 else str(Path(__file__).with_name("model.onnx"))
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    noted, needed = session.get_modelmeta().custom_metadata_map, ("mean", "std", "size", "classes")
    if missing := [key for key in needed if key not in noted]:
        print(f"{model} does not say how it reads images: it lacks {', '.join(missing)}.", file=sys.stderr)
        sys.exit(2)
    told = {key: json.loads(noted[key]) for key in needed}  # tools that change the file note things in other forms
    mean, std, size = np.array(told["mean"], "f4"), np.array(told["std"], "f4"), told["size"]
    unreadable = 0
    files = [place] if place.is_file() else sorted(place.rglob("*"))
    for path in (path for path in files if path.suffix.lower() in Image.registered_extensions() or path == place):
        try:
            image = read(path, size, len(mean))
        except Exception as error:  # Pillow raises many kinds for damaged files
            print(f"{path}: {error}", file=sys.stderr)
            unreadable += 1
            continue
        pixels = (image.astype("f4") / 255 - mean) / std
        logits = session.run(None, {session.get_inputs()[0].name: pixels.transpose(2, 0, 1)[None]})[0][0]
        share = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        print(f"{path}\t{told['classes'][int(logits.argmax())]}\t{share.max():.3f}")
    sys.exit(1 if unreadable else 0)
