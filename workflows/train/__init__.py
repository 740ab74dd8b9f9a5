"""Sharded training on Ray Train: `loop` trains denoiser, noisy-image classifier and CLIP alike.

`stage.train_denoiser`, `stage.train_classifier` and `clip.stage.train_clip` are the stages; `objectives` holds the
losses, `plan` and `batches` say which rows make a batch.
"""
