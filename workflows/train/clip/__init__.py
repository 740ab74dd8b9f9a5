"""The CLIP that a job trains itself: its batches, its loss and its stage."""
