"""Blocks that two or more models share; pure tensors, no files."""
