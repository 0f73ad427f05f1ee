"""The client of RecTools' worker against a stand-in worker, and the real one where its environment is at hand."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from higr_hf.baselines import HSTU, Baseline, BERT4Rec, Popularity, SASRec, sequential
from higr_hf.baselines.early_stopping import Judgement
from higr_hf.data import leave_last_out, synthetic_log
from higr_hf.evaluation import SlateEvaluator

LOG = synthetic_log(num_users=32, num_items=40, num_topics=4, length=24)
SPLITS = leave_last_out(LOG)
TINY = {"factors": 16, "heads": 2, "blocks": 1, "max_history": 8, "learning_rate": 0.01, "dropout": 0.0}

STAND_IN = """
    import json, os, sys
    from pathlib import Path
    import numpy as np
    from safetensors.numpy import load_file, save_file

    folder = Path(sys.argv[1])
    job, inputs = json.loads((folder / "job.json").read_text()), load_file(folder / "inputs.safetensors")
    number = job["num_items"]
    if job["action"] == "fit":
        if job["settings"]["learning_rate"] > 1:
            sys.exit("the loss is not finite")
        save_file({"counts": np.bincount(inputs["events"], minlength=number),
                   "item_order": np.arange(number), "targets": inputs["target_events"]}, folder / "state.safetensors")
        outcome = {"parameters": 7, "schema": {"of": job["kind"]}, "epoch": 5, "history": [[5, 0.1, 2.0, 0.5]],
                   "threads": os.environ["OMP_NUM_THREADS"]}
        (folder / "outcome.json").write_text(json.dumps(outcome))
    else:
        assert job["schema"] == {"of": job["kind"]}
        counts = load_file(folder / "state.safetensors")["counts"].astype("float32")
        rows = np.split(inputs["events"], np.cumsum(inputs["lengths"])[:-1])
        for block, start in enumerate(range(0, len(rows), job["block_size"])):
            scores = np.stack([counts + 1000 * np.isin(np.arange(number), row + 1)
                               for row in rows[start : start + job["block_size"]]]).astype("float32")
            save_file({"scores": scores}, folder / f"scores-{block:05d}.safetensors")
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A worker that scores the items behind those of the history first, then by frequency."""
    path = tmp_path / "worker.py"
    path.write_text(textwrap.dedent(STAND_IN))
    monkeypatch.setattr(sequential, "WORKER", path)
    monkeypatch.setenv(sequential.PYTHON_VARIABLE, sys.executable)


def test_scores_come_back_in_order_over_several_blocks(stand_in, monkeypatch, tmp_path):
    monkeypatch.setattr(SASRec, "block_size", 2)
    model = SASRec(LOG.item_ids, **TINY).fit(SPLITS["train"], SPLITS["validation"])
    histories = [np.array([place]) for place in range(5)]
    slates = model.recommend(histories, 2, exclude=histories)
    assert slates[:, 0].tolist() == [1, 2, 3, 4, 5]
    loaded = Baseline.from_pretrained(model.save_pretrained(tmp_path / "saved"))
    assert isinstance(loaded, SASRec)
    assert loaded.num_parameters() == 7
    np.testing.assert_array_equal(loaded.recommend(histories, 2, exclude=histories), slates)
    np.testing.assert_array_equal(loaded.scores(histories[:1]), model.scores(histories[:1]))


def test_the_worker_gets_targets_of_validation_alone(stand_in):
    targets = SASRec(LOG.item_ids, **TINY).fit(SPLITS["train"], SPLITS["validation"]).state["targets"]
    index = {item: row for row, item in enumerate(LOG.item_ids)}
    assert targets.tolist() == [index[item] for row in SPLITS["validation"]["target_item_ids"] for item in row]
    assert not len(SASRec(LOG.item_ids, **TINY).fit(SPLITS["train"]).state["targets"])


def test_the_worker_has_as_many_threads_and_its_judgements_come_back(stand_in):
    model = SASRec(LOG.item_ids, **TINY).fit(SPLITS["train"], SPLITS["validation"])
    assert model.outcome["threads"] == str(torch.get_num_threads())
    assert model.history == [Judgement(epoch=5, score=0.1, training_seconds=2.0, judging_seconds=0.5)]


def test_what_the_worker_said_is_in_the_error(stand_in):
    with pytest.raises(RuntimeError, match=r"hstu failed(?s:.)*the loss is not finite"):
        HSTU(LOG.item_ids, **{**TINY, "learning_rate": 2.0}).fit(SPLITS["train"])


def test_without_an_interpreter_it_says_how_to_make_one(monkeypatch, tmp_path):
    monkeypatch.setenv(sequential.PYTHON_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(RuntimeError, match="make rectools"):
        BERT4Rec(LOG.item_ids, **TINY).fit(SPLITS["train"])


def test_settings_that_cannot_work():
    with pytest.raises(ValueError, match="loss is 'softplus'"):
        SASRec(LOG.item_ids, loss="softplus")
    with pytest.raises(ValueError, match="multiple of heads"):
        SASRec(LOG.item_ids, factors=10, heads=4)
    with pytest.raises(RuntimeError, match="has not been fitted"):
        SASRec(LOG.item_ids).scores([[1]])


def rectools_is_at_hand() -> bool:
    try:
        sequential.rectools_python()
    except RuntimeError:
        return False
    return True


needs_rectools = pytest.mark.skipif(
    not rectools_is_at_hand(), reason="RecTools wants NumPy < 2: `make rectools` builds its environment"
)


class Killed(Exception):
    pass


@pytest.mark.slow
@needs_rectools
@pytest.mark.parametrize("model", [SASRec, BERT4Rec, HSTU])
def test_a_killed_training_goes_on_from_its_last_judgement(model, tmp_path, monkeypatch):
    # So slow that it learns nothing: its score is its weights', whatever batches it draws.
    settings = {**TINY, "epochs": 60, "eval_every": 1, "patience": 0, "learning_rate": 1e-12}
    path = tmp_path / "deep" / "training.safetensors"

    def killed_after_a_judgement(command, **options):
        worker = subprocess.Popen(command, env=options["env"], stderr=subprocess.DEVNULL)
        while not path.is_file():
            assert worker.poll() is None, "it ended without having kept anything"
            time.sleep(0.01)
        worker.kill()
        worker.wait()
        raise Killed

    def trained(checkpoint=path, **changes):
        baseline = model(LOG.item_ids, **{**settings, **changes})
        baseline.checkpoint = checkpoint
        return baseline.fit(SPLITS["train"], SPLITS["validation"])

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", killed_after_a_judgement)
        with pytest.raises(Killed):
            trained()
    with pytest.raises(RuntimeError, match="left by a training with other settings"):
        trained(learning_rate=2e-3)
    with safe_open(path, framework="np") as file:
        facts, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    over = json.loads(facts["training"])["epoch"]
    noise = np.random.default_rng(0)
    for name in (name for name in tensors if name.startswith("network.")):
        tensors[name] = noise.normal(size=tensors[name].shape).astype(np.float32)
    save_file(tensors, path, facts)
    resumed = trained()
    assert resumed.outcome["taken_up"] == over < 60
    assert [judgement.epoch for judgement in resumed.history] == list(range(1, 61))
    scores = [judgement.score for judgement in resumed.history]
    assert len(set(scores[:over])) == len(set(scores[over:])) == 1
    assert scores[0] != scores[-1], "what was kept in the file is what went on"
    assert not path.exists(), "the training is over"


LOSSES = """
    import importlib.util, json, sys
    import numpy as np
    spec = importlib.util.spec_from_file_location("worker", sys.argv[1])
    worker = sys.modules["worker"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    rows = [np.random.default_rng(seed).integers(0, 30, 4 + seed) for seed in range(9)]
    found = {}
    for kind in worker.MODELS:
        model = worker.build(kind, json.loads(sys.argv[2]))
        model._build_model_from_dataset(worker.training_dataset(rows, 9))
        module = model.lightning_model.eval()
        module._xavier_normal_init()
        module.log = lambda *args, **kwargs: None
        batch = next(iter(model.data_preparator.get_dataloader_train()))
        losses = module.training_step(batch, 0), super(type(module), module).training_step(batch, 0)
        found[kind] = [float(loss) for loss in losses]
    print(json.dumps(found))
"""


@pytest.mark.slow
@needs_rectools
def test_the_loss_is_rectools_own_number():
    settings = json.dumps(asdict(sequential.SequentialSettings(**TINY)))
    command = [sequential.rectools_python(), "-c", textwrap.dedent(LOSSES), sequential.WORKER, settings]
    said = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
    losses = json.loads(said.splitlines()[-1])
    assert set(losses) == {"sasrec", "bert4rec", "hstu"}
    for ours, theirs in losses.values():
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
@needs_rectools
@pytest.mark.parametrize("kind", [SASRec, BERT4Rec, HSTU])
def test_rectools_models_learn_and_load_again_with_the_same_scores(kind, tmp_path):
    options = {**TINY, "epochs": 20, "eval_every": 10, "patience": 0, "batch_size": 16}
    model = kind(LOG.item_ids, **options).fit(SPLITS["train"], SPLITS["validation"])
    loaded = Baseline.from_pretrained(model.save_pretrained(tmp_path / "saved"))
    evaluator = SlateEvaluator(
        SPLITS["validation"], LOG.item_ids, exclude_history=True, progress=False, num_resamples=0
    )
    judged = evaluator.evaluate(loaded).primary_value
    # The worker judged the epoch that it kept; weights, items and exclusions survived the way through the files.
    assert judged == pytest.approx(max(score for _, score, *_ in model.history), abs=1e-6)
    assert judged > evaluator.evaluate(Popularity(LOG.item_ids).fit(SPLITS["train"])).primary_value
    assert np.isfinite(loaded.scores([np.array([], dtype=np.int64)])[0, model.state["item_order"]]).all()
