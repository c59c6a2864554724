"""Synthetic machine sounds.

How hard the set is, the levels of noise and faults in :mod:`~asdproto.data.synthetic.rooms`, was
fixed once, by the figures of the AutoEncoder-style detector alone; they are not to be changed to
suit another system. Of the default set (seed 0; 110 training clips and 200 test clips in each of 21
sections),

    python -m asdproto synthesize OUT
    python -m experiments.autoencoder --data OUT/dev_data --workdir RUN --preset quick

gives these areas under the curve in percent, harmonic means over sections:

========  ======  ======  =======
machine   source  target  partial
========  ======  ======  =======
ToyCar    82.9    31.4    51.7
ToyTrain  80.9    34.7    52.3
bearing   78.0    50.6    55.7
fan       81.9    46.7    57.5
gearbox   82.1    31.9    51.1
slider    69.4    36.9    51.6
valve     82.1    31.7    51.2
========  ======  ======  =======

The mean of both domains is 53 to 64; over all machines 79.3, 36.5 and 52.9, where the challenge's
AutoEncoder has 70.6, 42.3 and 54.5 on the real set (the paper's Table 1). The target domain is
below one half because the metric sets normal clips of one domain against the anomalies of both: to
a detector that has heard ten clips of a domain, its normal ones are odder than faults in the other.
"""

from asdproto.data.synthetic.facts import MACHINES as MACHINES
from asdproto.data.synthetic.facts import SECTIONS as SECTIONS
from asdproto.data.synthetic.plan import FAULTS as FAULTS
from asdproto.data.synthetic.writer import synthesize as synthesize
