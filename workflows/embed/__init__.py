"""CLIP towers, built or loaded, and the content-addressed cache of what they say.

`clip_model.build_model` makes the towers that are trained here, `clip.load_clip` loads them, `stage.embed` fills the
cache, `cache.EmbeddingCache.open` reads it.
"""
