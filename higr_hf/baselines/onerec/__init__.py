"""OneRec (arXiv 2502.18965) as HiGR's own baseline: the same stages and IDs, the slate decoded flat, code by code."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .configuration import OneRecConfig
from .modeling import OneRecForSlateGeneration, OneRecModel

__all__ = ["OneRecConfig", "OneRecForSlateGeneration", "OneRecModel"]

# Trainers that load a checkpoint by its path find it here; a baseline's code does not travel with its weights.
AutoConfig.register(OneRecConfig.model_type, OneRecConfig, exist_ok=True)
AutoModel.register(OneRecConfig, OneRecModel, exist_ok=True)
AutoModelForCausalLM.register(OneRecConfig, OneRecForSlateGeneration, exist_ok=True)
