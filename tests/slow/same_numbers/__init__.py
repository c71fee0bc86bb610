"""Runs two source trees of longshort on the same inputs and compares every number that they write, bit for bit.

A refactoring must not change a number. This program runs the commands of one source tree, of another, and compares
the files that both wrote. A tree is used through its command line, `longshort.scoring.score_prefix` and
`longshort.scoring.score_suffixes`, and its result files, so that its modules can move. Both sides read the same
inputs, which do not depend on either tree: random checkpoints made with transformers and peft, a corpus, made-up
LongBench-E predictions, and the committed study. Everything runs on one CPU thread, because the sum of a parallel
reduction depends on the number of threads.

Check out the commit to compare with, then run this in the root of the repository. It takes about five minutes a
tree, and the first line can be left out when that tree was recorded before::

    python -m tests.slow.same_numbers record OLD_TREE --inputs INPUTS -o BEFORE
    python -m tests.slow.same_numbers record . --inputs INPUTS -o AFTER
    python -m tests.slow.same_numbers compare BEFORE AFTER
"""
