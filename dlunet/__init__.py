"""DLUNet: semi-supervised multi-organ CT segmentation with two light U-Nets."""

import os

__version__ = "0.1.0"

# Must be set before PyTorch is imported: idle threads sleep instead of spinning. Spinning threads make a training step
# on two cores several times slower when another process needs a core.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
