"""The command line `raverse`: `app` runs the job and its stages, each other module holds the verbs of one subject."""
