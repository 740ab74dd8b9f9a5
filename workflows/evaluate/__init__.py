"""The evaluation of a model: pictures are sampled on the cluster, judged against their prompts, measured and shown.

`stage.evaluate` is the stage; `sampling` draws, `measure` computes the figures, `pictures` plots, `full` measures one
registered model.
"""
