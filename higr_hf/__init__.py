"""higr_hf: generative slate recommendation for the Hugging Face stack.

Importing the package registers its configurations, models, tokenizer and pipeline with transformers, so that
`AutoModelForCausalLM.from_pretrained(path)` and `pipeline("slate-recommendation", model=path)` find them without
remote code.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.pipelines import PIPELINE_REGISTRY

from .checkpoint import load_checkpoint, save_checkpoint
from .configuration_crq_vae import CRQVAEConfig
from .configuration_higr import HiGRConfig
from .item_table_higr import UnknownItemError
from .modeling_crq_vae import CRQVAEModel
from .modeling_higr import HiGRForSlateGeneration, HiGRModel
from .pipeline_higr import SlateRecommendationPipeline
from .search_higr import HiGRGenerateOutput
from .tokenization_higr import HiGRTokenizer

__version__ = "0.1.0.dev0"

__all__ = [
    "CRQVAEConfig",
    "CRQVAEModel",
    "HiGRConfig",
    "HiGRForSlateGeneration",
    "HiGRGenerateOutput",
    "HiGRModel",
    "HiGRTokenizer",
    "SlateRecommendationPipeline",
    "UnknownItemError",
    "__version__",
    "load_checkpoint",
    "save_checkpoint",
]

SLATE_TASK = "slate-recommendation"


def _register() -> None:
    for config, model in ((HiGRConfig, HiGRModel), (CRQVAEConfig, CRQVAEModel)):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
    AutoModelForCausalLM.register(HiGRConfig, HiGRForSlateGeneration, exist_ok=True)
    AutoTokenizer.register(HiGRConfig, tokenizer_class=HiGRTokenizer, exist_ok=True)
    if SLATE_TASK not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            SLATE_TASK, pipeline_class=SlateRecommendationPipeline, pt_model=AutoModelForCausalLM, type="text"
        )
    # transformers prefers a checkpoint's own pipeline code, and asks for trust in it, even where the task is known.
    HiGRConfig._remote_pipelines = {}


_register()
