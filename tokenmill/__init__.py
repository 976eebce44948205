"""Tokenmill, the operating software of an AI factory.

Importing this package has no effect: nothing is read, opened or started. ``tokenmill.compose``
is the only place that builds a factory out of the rooms beside it.
"""

__version__ = "0.1.0"
