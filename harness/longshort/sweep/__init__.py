"""Many checkpoints, public or local, on one machine or a cluster, into one folder of results."""
