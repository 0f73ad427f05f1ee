"""What is pushed loads elsewhere: in a process that has never heard of this package, at a pinned version."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from higr_hf import load_checkpoint
from higr_hf.hub import push_release
from higr_hf.item_categories import CATEGORIES_FILE
from higr_hf.utils import SUMS_FILE
from tests.hub.conftest import make_parts
from tests.hub.server import Fault

ROOT = Path(__file__).parents[2]
HISTORIES = [["i3", "i8"], []]

OWN_PUSH = """
import json, sys
from datasets import Dataset, load_dataset
from higr_hf import CRQVAEModel, HiGRTokenizer, load_checkpoint

run, histories = sys.argv[1], json.loads(sys.argv[2])
model, tokenizer = load_checkpoint(run + "/model")
model.push_to_hub("ann/one-by-one", private=True)
tokenizer.push_to_hub("ann/one-by-one")
CRQVAEModel.from_pretrained(run + "/quantizer").push_to_hub("ann/quantizer")
pairs = Dataset.from_parquet(run + "/preferences/train.parquet", keep_in_memory=True)
pairs.push_to_hub("ann/pairs", private=True)
report = {}
back, words = type(model).from_pretrained("ann/one-by-one"), HiGRTokenizer.from_pretrained("ann/one-by-one")
report["slates"] = [m.generate(**t.encode_prompts(histories)).tolist() for m, t in ((model, tokenizer), (back, words))]
first, again = (CRQVAEModel.from_pretrained(place).state_dict() for place in (run + "/quantizer", "ann/quantizer"))
report["quantizer"] = all(bool((first[name] == again[name]).all()) for name in first)
report["pairs"] = load_dataset("ann/pairs", split="train").to_list() == pairs.to_list()
print("REPORT" + json.dumps(report))
"""

STRANGER = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "higr_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline

histories, versions, report = json.loads(sys.argv[1]), json.loads(sys.argv[2]), {"slates": [], "refusals": []}
for version in versions:
    options = {"revision": version, "trust_remote_code": True}
    tokenizer = AutoTokenizer.from_pretrained("ann/toy", **options)
    model = AutoModelForCausalLM.from_pretrained("ann/toy", **options)
    report["slates"].append(model.generate(**tokenizer.encode_prompts(histories)).tolist())
quantizer = AutoModel.from_pretrained("ann/toy", subfolder="quantizer", trust_remote_code=True)
report["classes"] = [type(x).__module__.split(".")[0] + "." + type(x).__name__ for x in (model, tokenizer, quantizer)]
options = {"revision": versions[0], "trust_remote_code": True}
recommend = pipeline("slate-recommendation", model="ann/toy", device="cpu", **options)
report["pipeline"] = [[place["item_id"] for place in slate] for slate in recommend(histories)]
for options in (
    {"trust_remote_code": False},
    {"trust_remote_code": True, "revision": "v0"},
    {"trust_remote_code": True, "token": False, "cache_dir": "empty"},
    {"trust_remote_code": True, "token": "wrong", "cache_dir": "empty too"},
):
    try:
        AutoModelForCausalLM.from_pretrained("ann/toy", **options)
        report["refusals"].append("loaded")
    except Exception as error:
        report["refusals"].append(f"{type(error).__name__}: {error}")
report["imported"] = [name for name in sys.modules if name.split(".")[0] == "higr_hf"]
print("REPORT" + json.dumps(report))
"""


def in_a_process(hub, home: Path, script: str, *arguments: str, package: bool) -> dict:
    """What a script reports that runs elsewhere, with the double as its Hub."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "HF_TOKEN")}
    environment |= hub.environment(home / "hf", "ann-writes") | ({"PYTHONPATH": str(ROOT)} if package else {})
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=home,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.split("REPORT")[1])


def test_every_part_pushes_itself_and_comes_back(hub, parts, tmp_path):
    report = in_a_process(hub, tmp_path, OWN_PUSH, str(parts), json.dumps(HISTORIES), package=True)
    assert report["slates"][0] == report["slates"][1] and report["quantizer"] and report["pairs"]
    private = {name: repository.private for (_, name), repository in hub.repositories.items()}
    assert private == {"ann/one-by-one": True, "ann/quantizer": False, "ann/pairs": True}
    pushed = set(hub.files("ann/one-by-one"))
    # Files of this package alone; the Hub has digests of its own, which downloads are held against.
    assert pushed >= {path.name for path in (parts / "model").iterdir() if path.is_file()} - {
        SUMS_FILE,
        CATEGORIES_FILE,
    }


def test_a_stranger_loads_the_version_that_was_pinned(client, parts, tmp_path):
    other = make_parts(tmp_path / "other", initializer_range=0.2)
    expected, versions = [], []
    for run in (parts, other):
        model, tokenizer = load_checkpoint(run / "model")
        expected.append(model.generate(**tokenizer.encode_prompts(HISTORIES)).tolist())
        versions.append(push_release("ann/toy", model=run / "model", quantizer=run / "quantizer", private=True).commit)
    assert expected[0] != expected[1]
    arguments = (json.dumps(HISTORIES), json.dumps([*versions, "main"]))
    report = in_a_process(client, tmp_path, STRANGER, *arguments, package=False)
    assert report["slates"] == [*expected, expected[1]]
    names = ("HiGRForSlateGeneration", "HiGRTokenizer", "CRQVAEModel")
    assert report["classes"] == [f"transformers_modules.{name}" for name in names] and report["imported"] == []
    model, tokenizer = load_checkpoint(parts / "model")
    prompts = tokenizer.encode_prompts(HISTORIES)
    found = model.generate(**prompts, exclude_history=True, return_dict_in_generate=True)
    assert report["pipeline"] == [[f"i{item}" for item in row] for row in found.slates.tolist()]
    untrusting, version, unnamed, wrong = report["refusals"]
    assert "trust_remote_code=True" in untrusting
    assert "v0" in version and "revision" in version.lower()
    assert "ann/toy" in unnamed and "private" in unnamed and "token" in unnamed
    assert "ann/toy" in wrong and "Invalid credentials" in wrong


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL there")
def test_a_push_that_is_killed_leaves_nothing_visible_and_can_be_repeated(client, parts, tmp_path):
    fault = Fault("PUT", "/store/", "hold")
    client.faults = [fault]
    options = ["--model", str(parts / "model"), "--repo_id", "ann/toy", "--private", "true"]
    with subprocess.Popen(
        [sys.executable, "-m", "training.push", *options],
        cwd=ROOT,
        env={**os.environ, **client.environment(tmp_path / "hf", "ann-writes")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert fault.reached.wait(120)
        process.send_signal(signal.SIGKILL)
    fault.released.set()
    assert set(client.files("ann/toy")) == {".gitattributes"} and client.repositories["model", "ann/toy"].private
    result = push_release("ann/toy", model=parts / "model", private=True)
    assert set(client.files("ann/toy")) == {*result.files, ".gitattributes"}
