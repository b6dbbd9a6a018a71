"""``python -m dlunet`` is the ``dlunet`` command."""

from dlunet.cli import main

if __name__ == "__main__":
    main()
