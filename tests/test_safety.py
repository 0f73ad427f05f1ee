"""Checkpoints made by someone else: nothing is unpickled, no size is believed, no file elsewhere is read."""

from __future__ import annotations

import ast
import json
import pickle
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import higr_hf
from higr_hf import CRQVAEConfig, CRQVAEModel, HiGRForSlateGeneration, HiGRModel, HiGRTokenizer, load_checkpoint
from tests.model_tester import HiGRModelTester

ROOT = Path(higr_hf.__file__).parents[1]


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    tester, folder = HiGRModelTester(), tmp_path_factory.mktemp("template")
    tester.model().save_pretrained(folder)
    ids = [f"i{item}" for item in range(tester.num_items)]
    HiGRTokenizer.from_codes(ids, tester.codes.numpy(), tester.codebook_sizes, 3, 2).save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(template, tmp_path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "model"))


@pytest.fixture
def little_memory():
    """A few hundred megabytes beyond what the process has: what is allocated before it is checked fails here."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else None
    if pages is None:
        pytest.skip("the address space is limited through /proc, which this system does not have")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 400 * 2**20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def change(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# ---- nothing is unpickled


def _calls(path: Path) -> list[tuple[str, ast.AST]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_no_source_file_unpickles():
    sources = [path for package in ("higr_hf", "training") for path in (ROOT / package).rglob("*.py")]
    assert len(sources) > 50
    for path in sources:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not imported & {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}, path
        for name, call in _calls(path):
            assert name not in ("torch.load", "torch.save", "pd.read_pickle", "eval", "exec", "yaml.load"), path
            allowed = [word.value for word in call.keywords if word.arg == "allow_pickle"]
            assert all(isinstance(value, ast.Constant) and value.value is False for value in allowed), path
            assert name != "np.load" or allowed, f"{path}: np.load without allow_pickle=False"


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("load", [HiGRForSlateGeneration.from_pretrained, HiGRModel.from_pretrained, load_checkpoint])
def test_pickled_weights_are_not_opened(checkpoint, tmp_path, load):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb(tmp_path / "exploded")))
    with pytest.raises((OSError, ValueError), match=r"model\.safetensors"):
        load(checkpoint)
    assert not (tmp_path / "exploded").exists()


def test_asking_for_pickled_weights_is_refused(checkpoint, tmp_path):
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb(tmp_path / "exploded")))
    with pytest.raises(ValueError, match="would unpickle the weights"):
        HiGRForSlateGeneration.from_pretrained(checkpoint, use_safetensors=False)
    assert not (tmp_path / "exploded").exists()


def test_pickled_weights_beside_whole_ones_are_passed_over(checkpoint, tmp_path):
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb(tmp_path / "exploded")))
    HiGRForSlateGeneration.from_pretrained(checkpoint)
    assert not (tmp_path / "exploded").exists()


# ---- no size is believed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_items": 10**9}, r"item_codes of shape \[1000000000, 3\], the weights have \[24, 3\]"),
        ({"num_items": 10**15}, "item_codes"),
        ({"codebook_sizes": [3, 4, 10**9]}, r"embed_tokens.weight of shape \[1000000017, 16\]"),
        ({"num_feedback_levels": 10**9}, "embed_tokens"),
        ({"hidden_size": 2**20}, r"the weights have \[21, 16\]"),
        ({"intermediate_size": 10**10}, "up_proj"),
        ({"max_slate_size": 10**10}, "embed_slots"),
        ({"planner_layers": 10**9}, "1000000002 layers"),
        ({"encoder_layers": 10**9}, "layers"),
        ({"shared_generator": False, "slate_size": 10**9}, "layers"),
        ({"shared_generator": False, "slate_size": 30}, "numbers that the weights do not have"),
    ],
)
def test_a_configuration_cannot_eat_the_memory(checkpoint, little_memory, changes, message):
    change(checkpoint / "config.json", **changes)
    with pytest.raises(ValueError, match=message):
        HiGRForSlateGeneration.from_pretrained(checkpoint)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook_sizes": [3, 4, 10**9]}, "vocabulary of 1000000017 tokens"),
        ({"num_feedback_levels": 10**9}, "vocabulary of"),
        ({"num_time_buckets": 10**9}, "vocabulary of"),
    ],
)
def test_a_tokenizer_configuration_cannot_eat_the_memory(checkpoint, little_memory, changes, message):
    change(checkpoint / "tokenizer_config.json", **changes)
    with pytest.raises(ValueError, match=message):
        HiGRTokenizer.from_pretrained(checkpoint)


def test_an_item_table_cannot_eat_the_memory(checkpoint, little_memory):
    # A header that promises 24 GB is refused by its own length; a true one by the item list beside it.
    header = {"codes": {"dtype": "I64", "shape": [10**9, 3], "data_offsets": [0, 24 * 10**9]}}
    text = json.dumps(header).encode()
    (checkpoint / "item_sids.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ValueError, match=r"item_sids\.safetensors is truncated or corrupt"):
        HiGRTokenizer.from_pretrained(checkpoint)
    save_file({"codes": torch.zeros(10**5, 3, dtype=torch.long)}, checkpoint / "item_sids.safetensors")
    with pytest.raises(ValueError, match=r"item_sids\.safetensors"):
        HiGRTokenizer.from_pretrained(checkpoint)


@pytest.mark.parametrize(
    "changes", [{"codebook_sizes": [10**9, 4, 4]}, {"input_size": 10**9}, {"hidden_sizes": [10**9]}]
)
def test_a_quantisers_configuration_cannot_eat_the_memory(tmp_path, little_memory, changes):
    config = CRQVAEConfig(input_size=6, latent_size=4, hidden_sizes=[8], codebook_sizes=[4, 4, 4])
    CRQVAEModel(config).save_pretrained(tmp_path)
    change(tmp_path / "config.json", **changes)
    with pytest.raises(ValueError, match=r"asks for .* of shape"):
        CRQVAEModel.from_pretrained(tmp_path)


def test_every_way_of_saving_still_loads(checkpoint, tmp_path):
    tester = HiGRModelTester()
    model = tester.model()
    model.save_pretrained(tmp_path / "sharded", max_shard_size="4KB")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 1
    model.save_pretrained(tmp_path / "named", variant="fp32")
    model.model.save_pretrained(tmp_path / "base")
    sharded = HiGRForSlateGeneration.from_pretrained(tmp_path / "sharded")
    named = HiGRForSlateGeneration.from_pretrained(tmp_path / "named", variant="fp32")
    for loaded in (sharded, named):
        assert torch.equal(loaded.lm_head.proj, model.lm_head.proj)
    base = HiGRModel.from_pretrained(tmp_path / "base")  # a model without head, and one whose head is left out
    for loaded in (base, HiGRModel.from_pretrained(checkpoint), HiGRForSlateGeneration.from_pretrained(checkpoint)):
        loaded = getattr(loaded, "model", loaded)
        assert torch.equal(loaded.item_codes, model.model.item_codes)
    assert HiGRForSlateGeneration.from_pretrained(tmp_path / "base").config.num_items == 24


def test_sizes_can_be_changed_on_purpose(checkpoint):
    config = HiGRModelTester().config(num_items=40)
    model = HiGRForSlateGeneration.from_pretrained(checkpoint, config=config, ignore_mismatched_sizes=True)
    assert len(model.model.item_codes) == 40


# ---- nothing outside the directory is read


@pytest.mark.parametrize(
    ("key", "name"),
    [("items_file", "items.json"), ("item_sids_file", "item_sids.safetensors"), ("tokenizer_file", "tokenizer.json")],
)
def test_a_configuration_cannot_name_files_elsewhere(checkpoint, template, key, name):
    (checkpoint / name).unlink()
    change(checkpoint / "tokenizer_config.json", **{key: str(template / name)})
    with pytest.raises(ValueError, match=f"lacks {name}"):
        HiGRTokenizer.from_pretrained(checkpoint)


def test_files_of_different_directories_are_refused(checkpoint, template):
    with pytest.raises(ValueError, match="spread over several directories"):
        HiGRTokenizer.from_pretrained(checkpoint, items_file=str(template / "items.json"))


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/elsewhere.safetensors", "sub/elsewhere.safetensors"])
def test_a_shard_outside_the_directory_is_refused(checkpoint, tmp_path, name):
    weights = load_file(checkpoint / "model.safetensors")
    save_file(weights, tmp_path / "elsewhere.safetensors", metadata={"format": "pt"})
    (checkpoint / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="which is not beside it"):
        HiGRForSlateGeneration.from_pretrained(checkpoint)
