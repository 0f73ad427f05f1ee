"""From a trained model to where it runs: adapters, int8 checkpoints, exported graphs, CUDA graphs."""

from __future__ import annotations

from .adapters import planner_lora
from .cuda_graph import GraphedDecoder
from .export import EncoderStep, GeneratorStep, PlannerStep, export_onnx, export_programs
from .fixed_shape import FixedShapeDecoder
from .int8 import Int8Embedding, Int8Linear, load_int8, quantize_int8, save_int8
from .int8_products import Int8ProductLinear, multiply_in_int8

__all__ = [
    "EncoderStep",
    "FixedShapeDecoder",
    "GeneratorStep",
    "GraphedDecoder",
    "Int8Embedding",
    "Int8Linear",
    "Int8ProductLinear",
    "PlannerStep",
    "export_onnx",
    "export_programs",
    "load_int8",
    "multiply_in_int8",
    "planner_lora",
    "quantize_int8",
    "save_int8",
]
