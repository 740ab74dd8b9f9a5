"""Files on disk and in object stores: `place` reads and writes, `shards` carry a hash, `shelf` finds them."""
