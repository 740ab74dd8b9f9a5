"""The figures of an evaluation: `fidelity` distances, the `judge`, `scores` of pictures, nearest `neighbours`."""
