"""Seacan: a container engine that speaks the Docker API, usable as a program and as a library."""

__version__ = "0.1.0"
