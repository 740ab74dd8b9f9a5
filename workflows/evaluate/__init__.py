"""What a model is worth: pictures are sampled on the cluster, judged as asked, measured and shown.

`stage.evaluate` is the stage; `sampling` draws, `judge` names what it sees, `metrics` counts, `pictures` plots.
"""
