"""The command line: parse, build, call. What is computed lies in the packages below."""

from jaxstate.cli.app import main

__all__ = ["main"]
