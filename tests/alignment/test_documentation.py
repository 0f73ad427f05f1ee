"""The code of docs/alignment.md runs as it stands, in a process that has never heard of this package."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from higr_hf import HiGRForSlateGeneration, load_checkpoint

DOCUMENT = Path(__file__).parents[2] / "docs" / "alignment.md"


def test_ones_own_pairs_with_plain_trl(checkpoint, tmp_path):
    (script,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert "higr_hf" not in script
    shutil.copytree(checkpoint, tmp_path / "runs" / "quickstart" / "model")
    rows = [{"history": ["i1", "i2"], "chosen": ["i3", "i4"], "rejected": ["i5", "i6"]}] * 4
    (tmp_path / "my_pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    script += "\nimport sys; assert 'higr_hf' not in sys.modules"
    environment = {
        **os.environ,
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "ACCELERATE_USE_CPU": "1",
    }
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]

    model, tokenizer = load_checkpoint(tmp_path / "runs" / "my-alignment" / "model")
    start = HiGRForSlateGeneration.from_pretrained(checkpoint)
    prompt = tokenizer(tokenizer.build_prompt(["i1", "i2"]), return_tensors="pt")
    assert not torch.equal(model(**prompt).logits, start(**prompt).logits)
