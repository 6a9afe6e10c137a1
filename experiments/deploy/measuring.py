"""One network's ladder: dense and thin files exported, evaluated on the test data, and timed in turns."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from experiments.deploy.networks import BUDGETS, commands
from slim import deploy
from slim.command.compose import compose, register
from slim.runs import weights
from slim.runs.components import Components
from slim.runs.exporting import export_network, tested
from slim.runs.prepare import prepare

FORMS = {"fp32": "onnx", "int8": "int8"}


def measure(name: str, data: Path, cache: Path, seconds: float) -> dict[str, Any]:
    """Rows by rung: metric on the test data, bytes, milliseconds at batch 1 and 64, share of the dense network's MACs.

    The rungs of all budgets and the dense ones are timed together, in turns.
    """
    register("deploy")
    files = {"dense": cache / name / "sparse", **{budget: cache / name / budget for budget in BUDGETS}}
    lines = commands(name, data, cache)
    rungs, rows = {}, {}
    macs: dict[str, int] = {}
    for kind, home in files.items():
        parts = _parts(lines["sparse" if kind == "dense" else kind], home)
        source = home / "model.safetensors"
        folder = cache / name / "exported" / kind
        found, _ = export_network(parts, folder, source)
        module = weights.load(parts, source)
        network = parts.network(module).cpu().eval()
        macs[kind] = parts.trace(network).macs()
        outputs = deploy.capture(network, parts.example).call_spec.out_spec
        made: dict[str, Any] = {"eager": None} if kind == "dense" else {}
        made |= {
            form: deploy.FORMATS[fmt].load(folder / found.files[fmt].name, outputs, None) for form, fmt in FORMS.items()
        }
        for form, runner in made.items():
            rung = f"{kind} fp32 eager" if form == "eager" else f"{kind} {form}"
            rungs[rung] = network if runner is None else runner
            size = source.stat().st_size if runner is None else deploy.size(found.files[FORMS[form]])
            rows[rung] = {"metric": tested(parts, module, runner), "bytes": size, "macs": macs[kind] / macs["dense"]}
        example = parts.example
    for rung, millis in deploy.latencies(rungs, example, seconds=seconds).items():
        rows[rung] |= {f"ms_b{batch}": value for batch, value in millis.items()}
    return {"metric": parts.config.metric.name, "rows": rows}


def _parts(line: list[str], home: Path) -> Components:
    """The run in ``home`` as it was configured, to export what it left; whatever int8 loses is a row."""
    given = [item for item in line if not item.startswith(("phases=", "checkpoint=", "hydra."))]
    extra = [
        "phases=[export]",
        f"checkpoint={home / 'model.safetensors'}",
        "export.formats=[onnx,int8]",
        "export.max_loss=1",
    ]
    config, _ = compose([*given, *extra], Namespace(config_dir=None, config_name=None))
    return prepare(config)
