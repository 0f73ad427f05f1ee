"""`training.train`, writing down what this process trained on, what it wrote and where its weights ended."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from accelerate import PartialState

from higr_hf.data.collators import SlateCollator
from higr_hf.trainer import SlateTrainer
from training import train


def main() -> None:
    """Train with the arguments of the command line; the record goes to `$HIGR_RECORD/<rank>.json`."""
    folder, batches, written, trainers = Path(os.environ["HIGR_RECORD"]), [], set(), []
    collate, fit = SlateCollator.__call__, SlateTrainer.train

    def recording(self: SlateCollator, rows: list) -> dict:
        if not self.last_slate_only:
            batches.append((self.epoch, [row.items.tolist() for row in rows]))
        return collate(self, rows)

    def remember(self: SlateTrainer, *args, **kwargs):
        trainers.append(self)
        return fit(self, *args, **kwargs)

    def watch(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            written.add(arguments[0])

    SlateCollator.__call__, SlateTrainer.train = recording, remember
    sys.addaudithook(watch)
    train.main()
    state = PartialState()
    output = str(Path(trainers[0].args.output_dir).resolve())
    record = {
        "processes": state.num_processes,
        "batches": batches,
        "written": sorted(path for path in written if os.path.abspath(path).startswith(output)),
        "weights": [float(parameter.detach().double().sum()) for parameter in trainers[0].model.parameters()],
    }
    (folder / f"{state.process_index}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main()
