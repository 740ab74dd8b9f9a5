"""The embed stage fills the content-addressed cache of images, latents and CLIP embeddings.

`stage.embed` fills the cache, `cache.EmbeddingCache.open` reads it.
"""
