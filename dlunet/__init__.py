"""DLUNet: semi-supervised multi-organ CT segmentation with two light U-Nets."""

__version__ = "0.1.0"
