"""DLUNet: semi-supervised multi-organ CT segmentation with two light U-Nets."""

import os

__version__ = "0.1.0"

# Must be set before PyTorch is imported: idle threads sleep instead of spinning. Spinning threads make a training step
# on two cores several times slower when another process needs a core. GNU's threads spin for some 20 µs before, since
# the next of many small operations follows sooner than a thread wakes up.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
