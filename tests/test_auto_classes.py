"""A saved directory loads by itself: with the package, without it, and again after being saved from there."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, pipeline

import higr_hf
from higr_hf import (
    CRQVAEConfig,
    CRQVAEModel,
    HiGRConfig,
    HiGRForSlateGeneration,
    HiGRModel,
    HiGRTokenizer,
    SlateRecommendationPipeline,
)
from higr_hf.configuration_higr import SLATE_MODES
from tests.model_tester import HiGRModelTester

PACKAGE = Path(higr_hf.__file__).parent
HISTORIES = [["i3", "i8", "i3"], [], ["i20"]]


def make_tokenizer(tester: HiGRModelTester) -> HiGRTokenizer:
    ids = [f"i{item}" for item in range(tester.num_items)]
    return HiGRTokenizer.from_codes(ids, tester.codes.numpy(), tester.codebook_sizes, 3, 2)


def generate(model, tokenizer, **options):
    prompts = tokenizer.encode_prompts(HISTORIES)
    return model.generate(**prompts, return_dict_in_generate=True, exclude_history=True, **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, HiGRForSlateGeneration, HiGRTokenizer]:
    tester = HiGRModelTester()
    model, tokenizer = tester.model(feedback_edges=[2.5, 4.5], time_edges=[60.0]), make_tokenizer(tester)
    directory = tmp_path_factory.mktemp("saved") / "model"
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory, model, tokenizer


# ---- with the package


def test_the_auto_classes_know_the_package(saved):
    directory, model, tokenizer = saved
    assert type(AutoConfig.from_pretrained(directory)) is HiGRConfig
    assert type(AutoTokenizer.from_pretrained(directory)) is HiGRTokenizer
    assert type(AutoModel.from_pretrained(directory)) is HiGRModel
    loaded = AutoModelForCausalLM.from_pretrained(directory)
    assert type(loaded) is HiGRForSlateGeneration and not loaded.training
    # Whoever trusts remote code still gets the installed classes.
    assert type(AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)) is HiGRForSlateGeneration
    assert type(AutoModelForCausalLM.from_config(model.config)) is HiGRForSlateGeneration
    before, after = generate(model, tokenizer), generate(loaded, tokenizer)
    assert torch.equal(before.slates, after.slates) and torch.equal(before.scores, after.scores)


@pytest.mark.parametrize("trust", [None, True])
def test_the_pipeline_needs_no_trust_where_the_package_is(saved, trust):
    built = pipeline("slate-recommendation", model=str(saved[0]), trust_remote_code=trust, device="cpu")
    assert type(built) is SlateRecommendationPipeline and type(built.model) is HiGRForSlateGeneration


def test_the_quantiser_has_auto_classes_too(tmp_path):
    model = CRQVAEModel(CRQVAEConfig(input_size=4, latent_size=4, hidden_sizes=[4], codebook_sizes=[2, 2]))
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is CRQVAEConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is CRQVAEModel
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    for place in auto_map.values():
        assert (tmp_path / f"{place.split('.')[0]}.py").read_text() == (
            PACKAGE / f"{place.split('.')[0]}.py"
        ).read_text()


def test_every_travelling_file_is_saved(saved):
    travelling = {path.name for path in PACKAGE.glob("*_higr.py")}
    assert {path.name for path in saved[0].glob("*.py")} == travelling
    for name in travelling:
        assert (saved[0] / name).read_bytes() == (PACKAGE / name).read_bytes()


@pytest.mark.parametrize(
    "path", [*PACKAGE.glob("*_higr.py"), *PACKAGE.glob("*_crq_vae.py")], ids=lambda path: path.name
)
def test_travelling_files_import_only_siblings_and_the_stack(path):
    allowed = {"torch", "transformers", "tokenizers", "numpy", "safetensors", *sys.stdlib_module_names}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module.split(".")[0] in allowed
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1 and node.module and (path.parent / f"{node.module}.py").is_file()


def top_level_imports(path: Path):
    """What importing a module imports at once: not what functions and type checkers do."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


def test_importing_the_package_needs_no_data_libraries():
    waiting, seen, outside = [PACKAGE / "__init__.py"], set(), set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        for level, name in top_level_imports(path):
            if level == 0:
                outside.add(name.split(".")[0])
                continue
            parts = name.split(".") if name else []
            folder = path.parents[level - 1].joinpath(*parts)
            sources = [folder.with_suffix(".py"), folder / "__init__.py"]
            waiting += [source for source in sources if source.is_file() and source not in seen]
    assert {path.name for path in seen} >= {"modeling_higr.py", "checkpoint.py", "modeling_crq_vae.py"}
    assert outside <= {"torch", "transformers", "tokenizers", "numpy", "safetensors", *sys.stdlib_module_names}


def test_the_configuration_names_everything_and_survives_a_round_trip(saved):
    written = json.loads((saved[0] / "config.json").read_text())
    assert set(written["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
    task = written["custom_pipelines"]["slate-recommendation"]
    assert task["impl"] == "pipeline_higr.SlateRecommendationPipeline" and task["pt"] == ["AutoModelForCausalLM"]
    again = HiGRConfig.from_pretrained(saved[0])
    assert (again.feedback_edges, again.time_edges) == ([2.5, 4.5], [60.0])
    assert again.to_dict() == HiGRConfig.from_dict(again.to_dict()).to_dict()
    assert HiGRModel(again).config.to_dict()["auto_map"] == written["auto_map"]


def test_special_tokens_cannot_be_moved():
    with pytest.raises(ValueError, match="slate_token_id must be 3"):
        HiGRConfig(slate_token_id=2)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_either_attention_finds_the_same_slates(saved, attention):
    directory, model, tokenizer = saved
    loaded = AutoModelForCausalLM.from_pretrained(directory, attn_implementation=attention)
    assert loaded.config._attn_implementation == attention
    before, after = generate(model, tokenizer), generate(loaded, tokenizer)
    assert torch.equal(before.slates, after.slates)
    torch.testing.assert_close(before.scores, after.scores)


def test_half_precision_keeps_the_catalogue_whole(saved, tmp_path):
    directory, model, tokenizer = saved
    loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    assert loaded.dtype == loaded.lm_head.proj.dtype == torch.bfloat16
    assert torch.equal(loaded.model.item_codes, model.model.item_codes)
    items = generate(loaded, tokenizer).slates
    assert all(len(set(row)) == 4 and min(row) >= 0 for row in items.tolist())
    loaded.save_pretrained(tmp_path)  # and "auto" reads it back as it was saved
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert again.dtype == torch.bfloat16 and torch.equal(generate(again, tokenizer).slates, items)


def test_sampling_never_leaks_into_a_loaded_model(saved, tmp_path):
    directory, model, tokenizer = saved
    loaded = AutoModelForCausalLM.from_pretrained(directory)
    assert loaded.generation_config.do_sample is False and loaded.generation_config.num_beams == 5
    # Without the file the model's own defaults count, not the library's.
    loaded.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    bare = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not bare.generation_config.do_sample
    assert torch.equal(generate(bare, tokenizer).slates, generate(model, tokenizer).slates)
    # A default that somebody sets on purpose is kept.
    loaded.generation_config = GenerationConfig(do_sample=True, temperature=0.5, num_beams=1)
    loaded.save_pretrained(tmp_path)
    kept = AutoModelForCausalLM.from_pretrained(tmp_path).generation_config
    assert (kept.do_sample, kept.temperature) == (True, 0.5)


@st.composite
def checkpoints(draw):
    levels = draw(st.integers(1, 3))
    sizes = tuple(draw(st.lists(st.integers(2, 4), min_size=levels, max_size=levels)))
    options = {
        "pooling": draw(st.sampled_from(["sum", "mean", "max"])),
        "encoder_attention": draw(st.sampled_from(["causal", "bidirectional"])),
        "generator_context": draw(st.booleans()),
        "shared_generator": draw(st.booleans()),
        "item_embedding": draw(st.booleans()),
        "dense_head": draw(st.booleans()),
        "catalog_prior": draw(st.booleans()),
        "slate_mode": draw(st.sampled_from(SLATE_MODES)),
        "slate_size": 2,
        "num_beams": draw(st.integers(1, 4)),
    }
    return HiGRModelTester(draw(st.integers(2, int(np.prod(sizes)))), sizes), options


@settings(max_examples=8)
@given(checkpoints())
def test_saving_and_loading_twice_changes_no_slate(tmp_path_factory, drawn):
    tester, options = drawn
    model, tokenizer = tester.model(**options), make_tokenizer(tester)
    history = [tokenizer.item_ids[:3], []]
    expected = model.generate(**tokenizer.encode_prompts(history), return_dict_in_generate=True)
    for _ in range(2):
        folder = tmp_path_factory.mktemp("round")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        model, tokenizer = HiGRForSlateGeneration.from_pretrained(folder), HiGRTokenizer.from_pretrained(folder)
        found = model.generate(**tokenizer.encode_prompts(history), return_dict_in_generate=True)
        assert torch.equal(found.slates, expected.slates) and torch.equal(found.scores, expected.scores)


# ---- without the package

STRANGER = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "higr_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline

path, histories, report = sys.argv[1], json.loads(sys.argv[2]), {"refusals": [], "classes": []}
for load in (
    lambda: AutoConfig.from_pretrained(path, trust_remote_code=False),
    lambda: AutoTokenizer.from_pretrained(path, trust_remote_code=False),
    lambda: AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False),
    lambda: pipeline("slate-recommendation", model=path, trust_remote_code=False),
):
    try:
        load()
        report["refusals"].append("loaded")
    except ValueError as error:
        report["refusals"].append(str(error))

def slates(model, tokenizer, **options):
    prompts = tokenizer.encode_prompts(histories)
    out = model.generate(**prompts, return_dict_in_generate=True, exclude_history=True, **options)
    return [out.slates.tolist(), out.scores.tolist()]

for name in ("first", "second", "third"):
    config = AutoConfig.from_pretrained(path, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
    backbone = AutoModel.from_pretrained(path, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
    report["classes"] += [f"{type(x).__module__.split('.')[0]}.{type(x).__name__}"
                          for x in (config, tokenizer, backbone, model)]
    ids = tokenizer.encode_prompts(histories)["input_ids"]
    hidden, head = backbone(ids).last_hidden_state, model.lm_head
    report[name] = {
        "slates": slates(model, tokenizer),
        "head_fits": bool(torch.equal(head(hidden), model(ids).logits)),
        "fingerprint": tokenizer.fingerprint,
        "do_sample": model.generation_config.do_sample,
    }
    recommend = pipeline("slate-recommendation", model=path, trust_remote_code=True, device="cpu")
    report[name]["pipeline"] = [[place["item_id"] for place in slate] for slate in recommend(histories)]
    path = sys.argv[3] + "/" + name
    if name == "first":
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
    else:
        recommend.save_pretrained(path)
half = AutoModelForCausalLM.from_pretrained(
    path, trust_remote_code=True, dtype=torch.bfloat16, attn_implementation="eager"
)
report["half"] = [str(half.dtype), half.config._attn_implementation, slates(half, tokenizer)[0]]
report["imported"] = [name for name in sys.modules if name.split(".")[0] == "higr_hf"]
print("REPORT" + json.dumps(report))
"""


@pytest.fixture(scope="module")
def stranger(saved, tmp_path_factory) -> dict:
    """What a process without the package, in another folder and offline, makes of the directory."""
    home = tmp_path_factory.mktemp("home")
    script = home / "stranger.py"
    script.write_text(STRANGER)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["HF_MODULES_CACHE"] = str(home / "hf" / "modules")
    done = subprocess.run(
        [sys.executable, str(script), str(saved[0]), json.dumps(HISTORIES), str(home)],
        cwd=home,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.split("REPORT")[1])


def test_a_stranger_must_trust_the_code_first(stranger):
    assert len(stranger["refusals"]) == 4
    for message in stranger["refusals"]:
        assert "trust_remote_code=True" in message


def test_a_stranger_loads_all_four_auto_classes(stranger):
    names = ["HiGRConfig", "HiGRTokenizer", "HiGRModel", "HiGRForSlateGeneration"] * 3
    assert stranger["classes"] == [f"transformers_modules.{name}" for name in names]
    assert stranger["imported"] == []


@pytest.mark.parametrize("name", ["first", "second", "third"])
def test_a_stranger_generates_the_same_slates_after_every_save(saved, stranger, name):
    _, model, tokenizer = saved
    expected, found = generate(model, tokenizer), stranger[name]
    assert found["slates"][0] == expected.slates.tolist()
    assert found["slates"][1] == pytest.approx(np.array(expected.scores.tolist()), abs=1e-5)
    assert found["pipeline"] == [[f"i{item}" for item in row] for row in expected.slates.tolist()]
    assert found["fingerprint"] == tokenizer.fingerprint
    assert found["head_fits"] and found["do_sample"] is False


def test_a_stranger_may_choose_precision_and_attention(stranger):
    dtype, attention, items = stranger["half"]
    assert (dtype, attention) == ("torch.bfloat16", "eager")
    assert all(len(set(row)) == 4 and min(row) >= 0 for row in items)
