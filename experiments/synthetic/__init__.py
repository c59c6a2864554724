"""Synthetic machine sounds.

How hard the set is, the levels of noise, faults and differences in
:mod:`~experiments.synthetic.rooms`, was fixed by the challenge's two baselines alone, before
any other system ran on it: both come out near their published figures on the real set (the paper's
Table 1). The levels are not to be changed to suit another system. Of two data sets of the default
size (seeds 0 and 1; 50 + 10 training and 100 test clips of 6 s in each of 21 sections),

    python -m asdproto synthesize OUT --seed SEED
    python -m asdproto train OUT/dev_data RUN --system autoencoder --preset small --seed SEED
    python -m asdproto train OUT/dev_data RUN --system mobilenet --preset small --seed SEED

gave these areas under the curve in percent, harmonic means over sections, averaged over the seeds
(``experiments/results/synthetic_levels.json``):

=========  ======  ======  ======  ======  ======  ======
           AutoEncoder             MobileNetV2
---------  ----------------------  ----------------------
machine    source  target    pAUC  source  target    pAUC
=========  ======  ======  ======  ======  ======  ======
ToyCar       75.3    45.2    53.6    68.4    60.1    55.1
ToyTrain     73.7    48.2    54.2    73.3    50.5    55.9
bearing      69.1    43.5    51.4    64.5    54.1    54.3
fan          63.0    57.2    55.6    59.4    48.3    51.3
gearbox      76.0    49.2    57.0    73.3    51.5    55.4
slider       67.6    49.2    54.0    75.8    52.3    56.8
valve        75.4    35.3    51.7    59.4    68.7    59.2
all          71.1    45.8    53.8    67.1    54.2    55.3
real set     70.6    42.3    54.5    64.6    51.0    55.8
=========  ======  ======  ======  ======  ======  ======

MobileNetV2 is trained for the small preset's 40 epochs at a rate of 1e-3, not for the official 20
passes at 1e-5 over thirty times as many windows. Larger sets were not measured.

A target domain below one half is no mistake: the metric sets normal clips of one domain against the
anomalies of both, and to a detector that has heard ten clips of a domain, its normal ones are odder
than faults in the other.
"""

from experiments.synthetic.facts import MACHINES as MACHINES
from experiments.synthetic.facts import SECTIONS as SECTIONS
from experiments.synthetic.plan import FAULTS as FAULTS
from experiments.synthetic.writer import SIZES as SIZES
from experiments.synthetic.writer import synthesize as synthesize
