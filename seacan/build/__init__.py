"""Building images: front end → graph → executor, with plain data in between.

``dockerfile`` turns text into a graph of operations (:mod:`seacan.build.graph`) and knows nothing of execution;
``solver`` carries a graph out, in parallel and cached by content, and knows nothing of Dockerfiles.
"""
