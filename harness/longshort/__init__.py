"""Measure long-short alignment in language models.

Three floors; imports go down only:

* faces: ``cli``, ``demo``, ``show``, ``scripts/``, ``tasks/``
* work: ``lmeval``, ``training``, ``sweep``, ``analysis``, ``synthetic``
* ground: ``scoring``, ``corpora``, ``results``, ``look``, ``causal``, ``devices``, ``loading``, ``errors``
"""

__version__ = "0.1.0"
