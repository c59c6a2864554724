"""Machine sounds made by a program, for the quickstart, tests and benchmarks of size.

    python -m experiments.synthetic OUT

Machine types, sections, domains and attributes have the names of DCASE 2022 Task 2, and the files
its layout. The sounds are made so that what this project's method is for can be seen: the
surroundings differ more from clip to clip than a fault changes the machine, there are many
operating conditions with audible differences, and faults are small changes of the machine itself.
Figures on them say nothing about recordings of real machines.
"""

from experiments.synthetic.facts import SECTIONS as SECTIONS
from experiments.synthetic.machines import FAULTS as FAULTS
from experiments.synthetic.machines import MACHINES as MACHINES
from experiments.synthetic.writer import synthesize as synthesize
