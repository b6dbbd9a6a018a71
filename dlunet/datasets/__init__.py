"""What a folder of CTs holds, by layout, and the synthetic abdomens that stand in where there is no data."""

from dlunet.datasets.cases import Case, Dataset
from dlunet.datasets.flare22 import read_flare22
from dlunet.datasets.synthetic import open_phantoms

__all__ = ["Case", "Dataset", "open_phantoms", "read_flare22"]
