"""Train a tiny network, write its checkpoints with planted faults, compare them, say what to try next."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from diffai_dist.demo.conversions import write_conversions
from diffai_dist.demo.network import initial, train
from diffai_dist.demo.night import STEPS, plant, write_night


def write_checkpoints(folder: Path) -> list[Path]:
    """Four checkpoints of one training: two steps, one with fc1 frozen, one with a NaN planted in it.

    Beside them, of the frozen one, a cast and two quantised versions.
    """
    from safetensors.numpy import save_file

    first = train(initial(), 60)
    second = train(first, 60)
    frozen = train(second, 60, frozen="fc1.")
    broken = {name: values.copy() for name, values in frozen.items()}
    broken["fc2.weight"][3, 5] = np.nan
    steps = {"step-060": first, "step-120": second, "step-180-fc1-frozen": frozen, "step-180-nan": broken}
    paths = []
    for name, weights in steps.items():
        path = folder / f"{name}.safetensors"
        save_file(weights, str(path), {"step": name[5:8].lstrip("0")})
        paths.append(path)
    write_conversions(folder, "step-180", frozen)
    return paths


def run_demo(directory: str | None = None) -> Iterator[str]:
    """The demo's output, piece by piece."""
    from diffai_dist.api import compare
    from diffai_dist.report import RENDERERS, View

    folder = Path(directory) if directory else Path(tempfile.mkdtemp(prefix="diffai-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    yield "Training a network of three layers on four spirals ... (the first run here also compiles the kernels)\n"
    first, second, frozen, broken = write_checkpoints(folder)
    yield f"Checkpoints in {folder}: {', '.join(path.name for path in (first, second, frozen, broken))}\n"
    shown = (
        (first, second, "1. Two steps of training: every layer moved, the later ones relatively more or less."),
        (second, frozen, "2. Then fc1 was frozen: it is not listed, because not one bit of it changed."),
        (frozen, broken, "3. One NaN was planted. It is counted, and every other statistic still holds."),
    )
    for baseline, candidate, title in shown:
        yield f"\n{title}\n$ diffai-dist compare {baseline.name} {candidate.name}\n"
        yield from RENDERERS["text"](compare(str(baseline), str(candidate)).sweep, View())
    yield from _nights(folder)
    yield (
        f"\nTry next, in {folder}:\n"
        f"  diffai-dist compare {first.name} {frozen.name} --sort-by-change-magnitude --show-layer-impact\n"
        f"  diffai-dist compare {frozen.name} {broken.name} --exit-code; echo $?\n"
        f"  diffai-dist compare {frozen.name} step-180-int8.safetensors --quantization-analysis\n"
        f"  diffai-dist compare {frozen.name} step-180-f16.safetensors --expect-cast F16 --fail-on high\n"
        f"  diffai-dist inspect {first.name}\n"
        f"  diffai-dist sweep 'run7/step-*' --pairs all --similarity-matrix --convergence-analysis\n"
        f"  diffai-dist report latest --store reports -o markdown\n"
        f"  diffai-dist status --store reports\n"
    )


def _nights(folder: Path) -> Iterator[str]:
    """Two sweeps of one training, a night apart; the second reads what is new, and says what went wrong."""
    from diffai_dist.api import sweep
    from diffai_dist.report import RENDERERS, View

    steps = write_night(folder / "run7")
    plant(folder / "run7")
    night = {"store": str(folder / "reports"), "name": "run7"}
    before = sweep(checkpoints=tuple(map(str, steps[: len(STEPS) - 4])), **night)
    report = sweep(checkpoints=tuple(map(str, steps)), **night)
    yield "\n4. Twelve checkpoints of a training, four of them new since the last night; three things went wrong.\n"
    yield "$ diffai-dist sweep 'run7/step-*' --name run7 --store reports\n"
    shown = "".join(RENDERERS["text"](report.sweep, View(previous=before.sweep, notes=report.reading.notes)))
    yield f"{shown.partition(chr(10) * 2)[0]}\n...\n"
