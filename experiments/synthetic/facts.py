"""What DCASE 2022 Task 2 says about its machines: attribute strings of sections 00, 01 and 02.

Read off the 4,200 file names of the development test set. Source and target share a string in no
section, as there.
"""

import functools

import numpy as np

from asdproto.data.dcase import attribute_pairs

SECTIONS = ("00", "01", "02")
DOMAINS = ("source", "target")

# Machine type -> (section, domain) -> strings; a brace stands for each of its values.
_PATTERNS: dict[str, dict[tuple[str, str], str]] = {
    "ToyCar": {
        ("00", "source"): "car_{A1,A2,E1,E2}_spd_{28V,34V}_mic_1_noise_1",
        ("00", "target"): "car_{C1,C2}_spd_{28V,34V}_mic_1_noise_2",
        ("01", "source"): "car_{A1,A2}_spd_{28V,40V}_mic_1_noise_1",
        ("01", "target"): "car_{A1,A2}_spd_{31V,37V}_mic_1_noise_2",
        ("02", "source"): "car_{A1,A2}_spd_{34V,40V}_mic_1_noise_1",
        ("02", "target"): "car_{A1,A2}_spd_{34V,40V}_mic_2_noise_2",
    },
    "ToyTrain": {
        ("00", "source"): "car_{A1,A2,E1,E2}_spd_{6,8}_mic_1_noise_1",
        ("00", "target"): "car_{C1,C2}_spd_{6,8}_mic_1_noise_2",
        ("01", "source"): "car_{A1,A2}_spd_{6,10}_mic_1_noise_1",
        ("01", "target"): "car_{A1,A2}_spd_{7,9}_mic_1_noise_2",
        ("02", "source"): "car_{A1,A2}_spd_{8,10}_mic_1_noise_1",
        ("02", "target"): "car_{A1,A2}_spd_{8,10}_mic_2_noise_2",
    },
    "bearing": {
        ("00", "source"): "vel_{6,10,14,18,22}",
        ("00", "target"): "vel_{2,4,8,12,16,20,24,26}",
        ("01", "source"): "vel_{4,12}_loc_{A,B,C,D}",
        ("01", "target"): "vel_{4,12}_loc_{E,F,G,H}",
        ("02", "source"): "vel_{6,14}_f-n_{A,B}",
        ("02", "target"): "vel_{6,14}_f-n_C",
    },
    "fan": {
        ("00", "source"): "m-n_{W,X}",
        ("00", "target"): "m-n_{Y,Z}",
        ("01", "source"): "f-n_{A,B}",
        ("01", "target"): "f-n_C",
        ("02", "source"): "n-lv_{L1,L2}",
        ("02", "target"): "n-lv_{L3,L4}",
    },
    "gearbox": {
        ("00", "source"): "volt_{1.0,1.5,2.0,2.5,3.0}",
        ("00", "target"): "volt_{0.6,0.8,1.3,1.8,2.3,2.8,3.3,3.5}",
        ("01", "source"): "wt_{0,50,100,150,200}",
        ("01", "target"): "wt_{30,80,130,180,230,250}",
        ("02", "source"): "id_{05,08,13}",
        ("02", "target"): "id_{00,02,11}",
    },
    "slider": {
        ("00", "source"): "vel_{300,500,700,900,1100}",
        ("00", "target"): "vel_{100,200,400,600,800,1000,1200,1300}",
        ("01", "source"): "ac_{0.03,0.05,0.07,0.09,0.11}",
        ("01", "target"): "ac_{0.01,0.02,0.04,0.06,0.08,0.10,0.12,0.14}",
        ("02", "source"): "f-n_{A,B}",
        ("02", "target"): "f-n_C",
    },
    "valve": {
        ("00", "source"): "pat_{00,01}",
        ("00", "target"): "pat_{02,03}",
        ("01", "source"): "pat_{04,05}_panel_{open,bs-c}",
        ("01", "target"): "pat_{04,05}_panel_{b-c,s-c}",
        ("02", "source"): "{v1pat_04,v1pat_05,v2pat_05}",
        ("02", "target"): "v1pat_{04,05}_v2pat_05",
    },
}


def attribute_strings(machine: str, section: str, domain: str) -> tuple[str, ...]:
    """Attribute strings of a section's domain as they stand in file names, in a fixed order."""
    return tuple(_expand(_PATTERNS[machine][section, domain]))


@functools.cache
def values_of(machine: str, key: str) -> tuple[str, ...]:
    """Every value of an attribute of a machine type, numbers in order and then texts."""
    found = {
        pair[1]
        for (section, domain) in _PATTERNS[machine]
        for text in attribute_strings(machine, section, domain)
        for pair in attribute_pairs(text)
        if pair[0] == key
    }

    def number(value: str) -> tuple[float, str]:
        digits = value.rstrip("V")
        return (float(digits), "") if digits.replace(".", "").isdigit() else (np.inf, value)

    return tuple(sorted(found, key=number))


def _expand(pattern: str) -> list[str]:
    """``a_{1,2}`` -> ``a_1``, ``a_2``."""
    head, brace, rest = pattern.partition("{")
    if not brace:
        return [pattern]
    values, _, tail = rest.partition("}")
    return [head + value + end for value in values.split(",") for end in _expand(tail)]
