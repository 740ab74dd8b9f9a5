"""Files on disk and in object stores.

`place` reads and writes, `atomic` writes whole files only, `shards` carry a hash, `shelf` finds them.
"""
