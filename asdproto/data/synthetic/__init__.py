"""Synthetic machine sounds.

How hard the set is, the levels of noise, faults and domain shift in
:mod:`~asdproto.data.synthetic.rooms`, was fixed by the figures of the challenge's two baselines
alone, whose figures on the real set are published; they are not to be changed to suit another
system.
"""

from asdproto.data.synthetic.facts import MACHINES as MACHINES
from asdproto.data.synthetic.facts import SECTIONS as SECTIONS
from asdproto.data.synthetic.plan import FAULTS as FAULTS
from asdproto.data.synthetic.writer import SIZES as SIZES
from asdproto.data.synthetic.writer import synthesize as synthesize
