"""`python -m jaxstate` is the command line."""

from jaxstate.cli import main

main()
