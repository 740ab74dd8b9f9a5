"""A model on disk: the package's `files`, references to the registry, LoRA matrices and imported networks."""
