"""Train: ``python train.py experiment=ssl_light``."""

from dlunet.cli import run_verb

if __name__ == "__main__":
    run_verb("train")
