"""The doctor: checks of the machine, the cluster and the stores that run before a job begins."""
