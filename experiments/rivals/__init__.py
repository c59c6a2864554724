"""Systems of other people that Table 1 stands the paper's beside; each is taken by its path.

``python -m asdproto train DATA RUN --system experiments.rivals.stgram:STgramSystem``
"""
