"""One contestant, warm in a process of its own: `python -m benchmarks.inference.contestant KIND CONTRACT`.

Reads lines `DICOM_FOLDER LABELS_FILE`, and answers each with what it took as JSON. KIND is `warm`: the model of the
contract as the daemon runs it, files in, labels out. Or `bare`: the forward passes of the windows of the same study,
which was read and preprocessed before the clock runs, and nothing else.
"""

import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from meddaemon.config.contracts import load_contract
from meddaemon.domain.contract import ModelContract

Answer = dict[str, object]


def main() -> int:
    kind, contract = sys.argv[1], load_contract(Path(sys.argv[2]))
    with tempfile.TemporaryDirectory() as scratch:
        _serve((_warm if kind == "warm" else _bare)(contract, Path(scratch)))
    return 0


def _serve(answer: Callable[[list[Path], Path], Answer]) -> None:
    for line in sys.stdin:
        study, labels = map(Path, line.split())
        # Everybody finds the files in memory: the disk is not what is measured.
        files = sorted(study.iterdir())
        for file in files:
            file.read_bytes()
        print(json.dumps(answer(files, labels)), flush=True)


def _warm(contract: ModelContract, scratch: Path) -> Callable[[list[Path], Path], Answer]:
    from meddaemon.inference.warm import WarmModels  # noqa: PLC0415

    models = WarmModels(scratch)

    def answer(files: list[Path], labels: Path) -> Answer:
        started = time.perf_counter()
        prediction = models.predict(contract, {"image": files})
        seconds = time.perf_counter() - started
        np.save(labels, prediction.labels)
        parts = {part: round(value, 4) for part, value in prediction.seconds.items()}
        within = sum(parts[part] for part in ("preprocess", "infer", "postprocess"))
        return {"seconds": seconds, "parts": parts, "within": within, "engine": prediction.provenance.get("engine", "")}

    return answer


def _bare(contract: ModelContract, scratch: Path) -> Callable[[list[Path], Path], Answer]:
    """The network sees each batch of windows that the bundle's inferer would show it, in the same order."""
    import torch  # noqa: PLC0415
    from monai.inferers import SlidingWindowInferer  # noqa: PLC0415

    from meddaemon.inference.bundles.session import load  # noqa: PLC0415
    from meddaemon.inference.bundles.terms import Terms  # noqa: PLC0415
    from meddaemon.inference.volume import assemble  # noqa: PLC0415

    warnings.simplefilter("ignore")
    session = load(contract.bundle, weights=contract.weights, scratch=scratch, terms=Terms.of(contract))

    def answer(files: list[Path], _: Path) -> Answer:
        (item,) = session.prepare({"image": assemble(files)}).items
        image = item.data["image"].as_tensor()[None].float()
        windows: list[torch.Tensor] = []

        def note(window: torch.Tensor) -> torch.Tensor:
            windows.append(window.clone())
            return window

        sliding = isinstance(session.inferer, SlidingWindowInferer)
        with torch.no_grad():
            if sliding:
                session.inferer(image, note)
            else:
                windows.append(image)
            started = time.perf_counter()
            for window in windows:
                session.network(window)
            seconds = time.perf_counter() - started
        return {"seconds": seconds, "windows": sum(map(len, windows)), "threads": torch.get_num_threads()}

    return answer


if __name__ == "__main__":
    sys.exit(main())
