"""The job: `stages` is the table of stages, `pipeline` runs what is not finished, `report` writes what came out.

`stopped` says why a stage does not go on from an unfinished try.
"""
