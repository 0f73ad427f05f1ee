"""A release holds what loading needs, and nothing else that lies in the directory."""

from __future__ import annotations

import json
import shutil

import pytest

from higr_hf import CRQVAEConfig, CRQVAEModel, load_checkpoint
from higr_hf.checkpoint import CheckpointError
from higr_hf.hub import HubError, dataset_files, model_files, quantizer_files, release_files, tokenizer_files


def paths(files) -> set[str]:
    return {file.path for file in files}


TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "items.json", "item_sids.safetensors"}
CARD = {"README.md", "plots/training.png"}


def code(directory) -> set[str]:
    return {path.name for path in directory.glob("*.py")}


def test_the_files_of_every_part(parts):
    model = {"config.json", "generation_config.json", "model.safetensors", "item_categories.json", *TOKENIZER, *CARD}
    assert paths(model_files(parts / "model")) == model | code(parts / "model")
    assert "modeling_higr.py" in code(parts / "model")
    needed = {"tokenization_higr.py", "item_table_higr.py", "vocabulary_higr.py"}
    assert paths(tokenizer_files(parts / "tokenizer")) == {*TOKENIZER, *CARD, *needed}
    quantizer = {"config.json", "model.safetensors"} | code(parts / "quantizer")
    assert paths(quantizer_files(parts / "quantizer")) == quantizer | CARD
    assert paths(dataset_files(parts / "preferences")) == {"README.md", "train.parquet"}


def test_a_model_and_its_quantiser_share_one_repository(parts):
    both = release_files(parts / "model", parts / "tokenizer", parts / "quantizer")
    assert len(paths(both)) == len(both)
    expected = paths(model_files(parts / "model")) | {"quantizer/config.json", "quantizer/model.safetensors"}
    assert paths(both) == expected | code(parts / "quantizer")
    # Alone, and without a model, they stand at the root.
    assert paths(release_files(quantizer=parts / "quantizer")) == paths(quantizer_files(parts / "quantizer"))
    assert paths(release_files(tokenizer=parts / "tokenizer")) == paths(tokenizer_files(parts / "tokenizer"))
    with pytest.raises(HubError, match="nothing to push"):
        release_files()


def test_what_else_lies_there_stays_at_home(run):
    before = paths(model_files(run / "model"))
    (run / "model" / "checkpoint-3").mkdir()
    for name in (
        "optimizer.safetensors", "optimizer.pt", "trainer_state.json", "training_args.bin", "pytorch_model.bin",
        "checkpoint-3/model.safetensors", ".env", "notes.txt", "secrets_higr.py", "report.json", "plots/other.png",
    ):  # fmt: skip
        (run / "model" / name).write_bytes(b"mine")
    assert paths(model_files(run / "model")) == before


def test_shards_and_their_index_are_weights(run):
    model, _ = load_checkpoint(run / "model")
    (run / "model" / "model.safetensors").unlink()
    model.save_pretrained(run / "model", max_shard_size="20KB")
    shards = {path.name for path in (run / "model").glob("model-*.safetensors")}
    found = {path for path in paths(model_files(run / "model")) if path.startswith("model")}
    assert len(shards) > 1 and found == {"model.safetensors.index.json", "modeling_higr.py", *shards}


def test_code_of_the_repository_it_came_from_is_not_run_again(run):
    # What transformers may leave in the configuration of a downloaded model.
    path = run / "model" / "config.json"
    config = json.loads(path.read_text())
    config["auto_map"] = {name: f"mallory/model--{place}" for name, place in config["auto_map"].items()}
    config["custom_pipelines"]["slate-recommendation"]["impl"] = "mallory/model--pipeline_higr.X"
    path.write_text(json.dumps(config))
    sent = next(file for file in model_files(run / "model") if file.path == "config.json")
    content = json.loads(sent.source)
    assert "mallory" not in sent.source.decode()
    assert content["auto_map"]["AutoConfig"] == "configuration_higr.HiGRConfig"
    assert content["custom_pipelines"]["slate-recommendation"]["impl"] == "pipeline_higr.X"
    assert "mallory" in path.read_text()  # the directory is as it was
    (run / "model" / "pipeline_higr.py").unlink()
    with pytest.raises((CheckpointError, HubError), match="pipeline_higr"):
        model_files(run / "model")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda run: (run / "model" / "modeling_higr.py").unlink(),
            "modeling_higr.py is missing, but",
        ),
        (lambda run: (run / "model" / "items.json").unlink(), "items.json is missing"),
        (lambda run: (run / "model" / "model.safetensors").write_bytes(b"half"), "model.safetensors"),
        (lambda run: (run / "quantizer" / "model.safetensors").write_bytes(b"half"), "no whole quantiser"),
        (lambda run: (run / "quantizer" / "config.json").unlink(), "no whole quantiser"),
        (lambda run: shutil.rmtree(run / "quantizer"), "There is no quantiser directory"),
        (lambda run: shutil.rmtree(run / "model"), "There is no checkpoint directory"),
        (lambda run: (run / "model" / "plots" / "training.png").unlink(), "which is missing"),
        (lambda run: (run / "model" / "README.md").write_text("![x](../../etc/passwd.png)"), "no picture inside"),
        (lambda run: (run / "model" / "README.md").write_text("![x](config.json)"), "no picture inside"),
    ],
)
def test_what_is_not_whole_is_not_pushed(run, break_it, message):
    break_it(run)
    with pytest.raises((CheckpointError, HubError, FileNotFoundError), match=message):
        release_files(run / "model", quantizer=run / "quantizer")


def test_parts_that_do_not_belong_together(run):
    _, tokenizer = load_checkpoint(run / "model")
    tokenizer.remove_items(["i1"])
    tokenizer.save_pretrained(run / "tokenizer")
    with pytest.raises(HubError, match="is not the tokenizer of"):
        release_files(run / "model", run / "tokenizer")
    config = CRQVAEConfig(input_size=4, latent_size=4, hidden_sizes=[4], codebook_sizes=[9, 9, 9])
    CRQVAEModel(config).save_pretrained(run / "other")
    with pytest.raises(HubError, match="did not make these"):
        release_files(run / "model", quantizer=run / "other")
    shared = [name for name in code(run / "quantizer") if (run / "model" / name).exists()]
    for name in shared:
        (run / "quantizer" / name).write_text("# another version\n")
        with pytest.raises(HubError, match="different versions"):
            release_files(run / "model", quantizer=run / "quantizer")


def test_a_directory_without_rows_is_no_dataset(tmp_path):
    with pytest.raises(HubError, match="holds no <split>"):
        dataset_files(tmp_path)
    with pytest.raises(FileNotFoundError, match="no dataset directory"):
        dataset_files(tmp_path / "none")
