"""Captioned images: the built-in sets, and how the other stages read them.

`stage.build_data` writes a data artifact; `dataset.Dataset.open` reads it.
"""
