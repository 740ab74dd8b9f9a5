"""Captioned images: built-in sets, users' own sources, and the data artifact that the other stages read.

`stage.build_data` writes a data artifact; `dataset.Dataset.open` reads it.
"""
