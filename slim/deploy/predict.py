"""Classes of images: python predict.py FOLDER [model.onnx]. Needs onnxruntime, numpy, and Pillow to read files."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

if __name__ == "__main__":
    model = sys.argv[2] if len(sys.argv) > 2 else str(Path(__file__).with_name("model.onnx"))
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    told = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    mean, std, size = np.array(told["mean"], "f4"), np.array(told["std"], "f4"), told["size"]
    for path in sorted(
        path for path in Path(sys.argv[1]).rglob("*") if path.suffix.lower() in Image.registered_extensions()
    ):
        image = ImageOps.exif_transpose(Image.open(path))
        if image.mode.startswith("I"):  # 16 bits: Pillow would take all above 255 for white
            image = Image.fromarray((np.asarray(image) // 257).astype("u1"))
        image = image.convert("RGB" if len(mean) == 3 else "L")
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)  # shorter side to size, the middle of it
        pixels = (np.asarray(image, "f4").reshape(size, size, -1) / 255 - mean) / std
        logits = session.run(None, {session.get_inputs()[0].name: pixels.transpose(2, 0, 1)[None]})[0][0]
        share = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        print(f"{path}\t{told['classes'][int(logits.argmax())]}\t{share.max():.3f}")
