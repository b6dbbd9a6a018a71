"""DLUNet: semi-supervised multi-organ CT segmentation with two light U-Nets."""

import os

__version__ = "0.1.0"

# Before PyTorch is imported: its threads shall sleep while they wait. By default they spin, and where another process
# needs a core, a training step on two cores takes several times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
