"""One process of a run over several devices, with the stub encoder in the place of a model."""

from __future__ import annotations

import sys

from stub_label import create_stub

from cdul_fast import encoders
from cdul_fast.execution import label_process

if __name__ == "__main__":
    encoders.create_encoder = create_stub
    sys.exit(label_process.run())
