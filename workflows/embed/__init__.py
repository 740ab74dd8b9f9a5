"""CLIP towers, trained here or loaded, and the content-addressed cache of what they say.

`clip_stage.train_clip` makes the towers, `clip.load_clip` loads them, `stage.embed` fills the cache,
`cache.EmbeddingCache.open` reads it.
"""
