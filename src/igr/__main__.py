"""``python -m igr``: the command ``igr``."""

from igr.experiments.cli import main

if __name__ == "__main__":
    main()
