"""Measure long-short alignment in language models.

The layers; imports point down only (CONTRIBUTING.md has the whole table):

* entry points: ``cli``, ``demo``, ``scripts/``, ``tasks/``
* work: ``lmeval``, ``longbench``, ``training``, ``sweep``, ``analysis``, ``synthetic``
* foundation: ``testing``, ``scoring``, ``options``, ``settings``, ``corpora``, ``results``, ``plotting``, ``devices``,
  ``load_errors``, ``errors``
"""

__version__ = "0.1.0"
