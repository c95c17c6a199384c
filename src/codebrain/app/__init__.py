"""Thin shells around the library: the command line and its commands."""
