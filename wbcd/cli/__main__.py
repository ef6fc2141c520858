"""``python -m wbcd.cli``: the same command where no console script is installed."""

from wbcd.cli import main

main()
