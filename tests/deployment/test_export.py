"""Exported graphs: the same numbers as the model at every size, and the same slates without PyTorch."""

from __future__ import annotations

import ast
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch

from higr_hf.deployment import export_onnx, export_programs
from higr_hf.deployment.export import STEPS, EncoderStep
from higr_hf.deployment.onnx_decoder import OnnxSlateDecoder
from higr_hf.layout_higr import SlateLayout
from higr_hf.living import remove_items
from tests.deployment.conftest import make_parts
from tests.model_tester import ADDED_SCORES

SIZES = {"planner_layers": 1, **ADDED_SCORES}  # tracing takes a second a layer


@pytest.fixture(scope="module")
def parts():
    model, tokenizer = make_parts(**SIZES)
    remove_items(model, tokenizer, ["i13", "i17"])
    return model, tokenizer


@pytest.fixture(scope="module")
def programs(parts):
    return export_programs(parts[0])


@pytest.fixture(scope="module")
def directory(parts, programs, tmp_path_factory):
    return export_onnx(tmp_path_factory.mktemp("onnx") / "model", *parts, programs)


class EagerSteps(OnnxSlateDecoder):
    """The decoder over the model itself: what differs from `generate` is the decoder's fault, not the graphs'."""

    def __init__(self, directory, model) -> None:
        super().__init__(directory)
        self._eager = {name: step(model) for name, step in STEPS.items()}

    @torch.no_grad()
    def _run(self, step, *inputs):
        return [output.numpy() for output in self._eager[step](*map(torch.as_tensor, inputs))]


def inputs_of(model, batch: int, units: int, slots: int, before: int, rows: int, codes: int, level: int) -> dict:
    """Random inputs of every step."""
    config, rng = model.config, np.random.default_rng(batch * 100 + units)
    heads, head = config.num_attention_heads, config.hidden_size // config.num_attention_heads

    def cache(*sizes):
        return rng.normal(size=(1, *sizes, head)).astype("float32")

    length = rng.integers(1, units + 1, batch)
    tokens = rng.integers(5, config.vocab_size, (batch, units, 5))
    fed = rng.integers(-1, config.num_items, (batch, slots))
    plans = rng.normal(size=(batch, rows, config.hidden_size)).astype("float32")
    newest = rng.normal(size=(batch, config.hidden_size)).astype("float32")
    context = [cache(batch, heads, units) for _ in range(2)]
    return {
        "encoder": (tokens, rng.integers(-1, config.num_items, (batch, units)), length),
        "planner": (
            newest, length, *context, np.arange(before, before + slots), fed, rng.integers(5, 8, batch),
            cache(batch, heads, before), cache(batch, heads, before),
        ),
        "generator": (
            plans, rng.integers(8, config.vocab_size, (batch, rows)), np.array([level]), length, *context,
            cache(batch, rows, heads, codes), cache(batch, rows, heads, codes),
        ),
        "prior": (plans,),
    }  # fmt: skip


SHAPES = [(1, 1, 1, 0, 1, 0, 0), (1, 9, 1, 1, 5, 1, 1), (3, 4, 5, 0, 2, 2, 2), (2, 2, 2, 3, 7, 1, 1)]


@pytest.mark.parametrize("sizes", SHAPES)
@pytest.mark.parametrize("name", list(STEPS))
def test_onnxruntime_gives_the_models_numbers(parts, directory, sizes, name):
    model, _ = parts
    inputs = inputs_of(model, *sizes)[name]
    session = onnxruntime.InferenceSession(directory / f"{name}.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, dict(zip(STEPS[name].INPUTS, inputs, strict=True)))
    with torch.no_grad():
        expected = STEPS[name](model)(*map(torch.as_tensor, inputs))
    assert [output.name for output in session.get_outputs()] == list(STEPS[name].OUTPUTS)
    for ours, theirs in zip(found, expected, strict=True):
        real = theirs.numpy() > -1e3  # tokens of other levels lie at -1e4, where float32 has three decimals
        np.testing.assert_allclose(ours[real], theirs.numpy()[real], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", list(STEPS))
def test_exported_programs_give_the_models_numbers(parts, programs, name):
    model, _ = parts
    inputs = [torch.as_tensor(part) for part in inputs_of(model, 3, 6, 2, 2, 4, 2, 1)[name]]
    with torch.no_grad():
        found, expected = programs[name].module()(*inputs), STEPS[name](model)(*inputs)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def slates(model, tokenizer, histories, wish=None, **options):
    prompts = tokenizer.encode_prompts(histories, wish=wish)
    output = model.generate(**prompts, return_dict_in_generate=True, **options)
    rows = zip(output.slates.tolist(), output.scores.tolist(), strict=True)
    return [[(tokenizer.item_ids[item], score) for item, score in zip(*row, strict=True)] for row in rows]


def same(ours, theirs) -> None:
    assert [item for item, _ in ours] == [item for item, _ in theirs]
    assert [score for _, score in ours] == pytest.approx([score for _, score in theirs], abs=1e-4)


@pytest.mark.parametrize("num_beams", [1, 3, 24])
@pytest.mark.parametrize("history", [[], ["i1"], ["i4", "i4", "i13", "i9"], [f"i{item}" for item in range(12)]])
def test_the_decoder_finds_what_generate_finds(parts, directory, history, num_beams):
    model, tokenizer = parts
    expected = slates(model, tokenizer, [history], num_beams=num_beams, exclude_history=True)[0]
    same(EagerSteps(directory, model).recommend(history, num_beams=num_beams), expected)
    same(OnnxSlateDecoder(directory).recommend(history, num_beams=num_beams), expected)


def test_every_argument_means_what_it_means_to_generate(parts, directory):
    model, tokenizer = parts
    decoder = EagerSteps(directory, model)
    allowed = [2, 3, 5, 7, 11, 13]
    expected = slates(
        model, tokenizer, [["i1"]], wish=2, slate_size=4, allowed=allowed, exclude=[[3]], num_beams=5
    )[0]  # fmt: skip
    names = [f"i{item}" for item in allowed]
    same(decoder.recommend(["i1"], 4, wish=2, allowed=names, exclude=["i3"], exclude_history=False), expected)
    prompt = tokenizer.build_prompt(["i1", "i2"], feedback=[2, -1], time_buckets=[None, 1])
    output = model.generate(**tokenizer([prompt], return_tensors="pt"), return_dict_in_generate=True)
    slate = decoder.recommend(["i1", "i2"], feedback=[2, -1], time_buckets=[-1, 1], exclude_history=False)
    assert [item for item, _ in slate] == [f"i{item}" for item in output.slates[0].tolist()]
    assert [score for _, score in slate] == pytest.approx(output.scores[0].tolist(), abs=1e-4)


def test_removed_and_excluded_items_cannot_come_out(parts, directory):
    model, _ = parts
    slate = [item for item, _ in EagerSteps(directory, model).recommend(["i1"], 99, num_beams=2, exclude=["i6"])]
    assert sorted(slate) == sorted({f"i{item}" for item in range(24)} - {"i1", "i6", "i13", "i17"})


def test_a_long_history_is_cut_to_the_newest_but_for_the_tables(parts, directory):
    model, tokenizer = parts
    history = [f"i{item % 24}" for item in range(30)]
    whole = [[item % 24 for item in range(30)]]
    expected = slates(model, tokenizer, [history[-12:]], history=whole, exclude=[range(24 - 8)], slate_size=2)[0]
    decoder = EagerSteps(directory, model)
    exclude = [f"i{item}" for item in range(16)]
    same(decoder.recommend(history, 2, exclude=exclude, exclude_history=False), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"history": ["zz"]}, "no item 'zz'"),
        ({"history": ["i1"], "feedback": [1, 2]}, "feedback has 2 values for 1 items"),
        ({"history": ["i1"], "feedback": [3]}, "the levels are 0 to 2"),
        ({"history": [], "wish": 9}, "the levels are 0 to 2"),
    ],
)
def test_the_decoder_says_what_is_wrong(directory, options, message):
    with pytest.raises(ValueError, match=message):
        OnnxSlateDecoder(directory).recommend(**options)


def test_the_directory_works_without_pytorch_and_the_package(parts, directory):
    blocked = "import sys\nfor name in ('torch', 'transformers', 'higr_hf', 'onnx'): sys.modules[name] = None\n"
    use = f"from decoder import OnnxSlateDecoder as D\nprint(D({str(directory)!r}).recommend(['i1', 'i2'], 3))"
    done = subprocess.run(
        [sys.executable, "-c", blocked + use], capture_output=True, text=True, cwd=directory, timeout=120
    )
    assert done.returncode == 0, done.stderr
    expected = slates(*parts, [["i1", "i2"]], slate_size=3, exclude_history=True)[0]
    same(ast.literal_eval(done.stdout), expected)


@pytest.mark.parametrize("change", [{"shared_generator": False}, {"generator_context": False}])
def test_what_cannot_be_exported_is_said(change):
    with pytest.raises(ValueError, match="shared_generator=True and generator_context=True"):
        export_programs(make_parts(**SIZES, **change)[0])
    with pytest.raises(ValueError, match="no catalogue"):
        export_programs(type(make_parts()[0])(make_parts(**SIZES)[0].config))


@pytest.mark.parametrize("pooling", ["sum", "mean", "max"])
def test_every_pooling_makes_the_same_units(pooling):
    model, tokenizer = make_parts(pooling=pooling, **SIZES)
    encoded = tokenizer([tokenizer.build_prompt(["i1", "i2"], feedback=[1, -1])], return_tensors="pt")
    layout = SlateLayout.parse(encoded["input_ids"], encoded["attention_mask"], model.config)
    units = model.model.embeddings.units(encoded["input_ids"], layout, model.model.unit_items(layout))
    context, _ = model.model.encode(units, layout.num_history)
    codes = tokenizer.codes[[1, 2]] + np.array(model.config.level_offsets)
    features = [[model.config.feature_offset + 1, 0], [0, 0]]
    tokens = np.concatenate([[[1, 0, 0, 0, 0]], np.concatenate([codes, features], axis=1)])
    newest, *_ = EncoderStep(model)(torch.as_tensor(tokens)[None], torch.tensor([[-1, 1, 2]]), torch.tensor([3]))
    torch.testing.assert_close(newest, context[:, 2])
