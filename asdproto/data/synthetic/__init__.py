"""Synthetic machine sounds."""

from asdproto.data.synthetic.facts import MACHINES as MACHINES
from asdproto.data.synthetic.facts import SECTIONS as SECTIONS
from asdproto.data.synthetic.plan import FAULTS as FAULTS
from asdproto.data.synthetic.writer import synthesize as synthesize
