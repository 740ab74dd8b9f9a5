"""Checkpoints of other programs: diffusers pipelines in, fine-tuned here, and out again."""
