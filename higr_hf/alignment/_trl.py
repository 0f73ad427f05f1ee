"""Everything that is taken from TRL, in one place: part of it is experimental there and may move.

Both of TRL's ways to log-probabilities occur here. ORPO and CPO read `outputs.logits`; DPO and KTO multiply the base
model's last hidden state with the weight of the output embeddings.
"""

from __future__ import annotations

import os

# The warning says that ORPO and CPO may leave TRL; setup.cfg pins what was tested.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.experimental.utils import DPODataCollatorWithPadding
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

__all__ = [
    "CPOConfig",
    "CPOTrainer",
    "DPOConfig",
    "DPODataCollatorWithPadding",
    "DPOTrainer",
    "DataCollatorForPreference",
    "DataCollatorForUnpairedPreference",
    "KTOConfig",
    "KTOTrainer",
    "ORPOConfig",
    "ORPOTrainer",
]
