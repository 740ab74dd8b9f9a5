"""The sampler deployment: each `Replica` holds the versions of one model, and one engine per version."""
