"""The training loop: `fit` starts Ray Train, `worker` runs on each rank, `trainer.Trainer` makes the steps."""
