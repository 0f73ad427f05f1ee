"""higr_hf: generative slate recommendation for the Hugging Face stack.

Importing the package registers its configurations, models and tokenizer with the Auto classes, so that
``AutoModelForCausalLM.from_pretrained(path)`` finds them without remote code.
"""

from __future__ import annotations

from .configuration_higr import HiGRConfig
from .modeling_higr import HiGRForSlateGeneration, HiGRModel

__version__ = "0.1.0.dev0"

__all__ = ["HiGRConfig", "HiGRForSlateGeneration", "HiGRModel", "__version__"]
