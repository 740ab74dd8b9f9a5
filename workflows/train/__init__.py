"""Sharded training on Ray Train: one loop for the denoiser, the noisy-image classifier and the CLIP.

`stage.train_denoiser`, `stage.train_classifier` and `clip_stage.train_clip` are the stages; `trainer.Trainer` is the
loop's body.
"""
