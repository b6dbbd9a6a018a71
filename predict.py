"""Segment CTs: ``python predict.py checkpoint=FILE input=FILE_OR_FOLDER output=FOLDER``."""

from dlunet.cli import run_verb

if __name__ == "__main__":
    run_verb("predict")
