"""Sharded training on Ray Train: one loop for the denoiser and for the noisy-image classifier.

`stage.train_denoiser` and `stage.train_classifier` are the stages; `trainer.Trainer` is the loop's body.
"""
