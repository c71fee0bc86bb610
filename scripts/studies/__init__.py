"""The study of results/study: its checkpoints, and the questions that are put to what was measured of them."""
