"""Fan, gearbox and bearing: machines that turn.

A model maps a :class:`ClipContext` to the spectrum of the machine's dry sound, about 0 dB when
normal at the middle of its attributes. Numbers are chosen by ear and eye after published recordings
of such machines; they describe no particular product.
"""

import numpy as np

from experiments.synthetic import physics as ph
from experiments.synthetic.context import ClipContext

FAN_FAULTS = ("unbalance", "broken_blade", "clogging", "over_voltage", "rubbing")
GEARBOX_FAULTS = ("chipped_tooth", "worn_teeth", "misalignment", "lack_of_grease", "over_voltage")
BEARING_FAULTS = ("outer_race", "inner_race", "rolling_element", "contamination", "eccentricity")

# Defect rates of a deep-groove ball bearing, per turn of the shaft.
OUTER_RACE_RATE = 3.58
INNER_RACE_RATE = 5.42
BALL_RATE = 4.71
CAGE_RATE = 0.398


def fan(context: ClipContext) -> np.ndarray:
    """Blade-pass and motor tones over broadband flow noise."""
    grid, unit, drive = context.grid, context.unit(), context.rng("drive")
    blades = int(unit.choice([5, 7, 9]))
    nominal = unit.uniform(23, 29)
    over_voltage = context.amount("over_voltage")
    speed = nominal * (1 + 0.003 * drive.standard_normal() + 0.01 * over_voltage)
    turns = ph.rotation(drive, grid, speed, 0.0006).sampled(grid)

    order = np.arange(1, 320)
    partials = 0.03 * unit.lognormal(0, 0.7, len(order)) / (1 + order * nominal / 500)
    passes = np.arange(1, 9)
    partials[passes * blades - 1] += 0.6 * unit.lognormal(0, 0.3, 8) / passes**1.4
    slots = np.arange(1, 12)
    partials[slots * 24 - 1] += 0.08 * unit.lognormal(0, 0.5, 11) / slots**0.7
    partials *= drive.lognormal(0, 0.12, len(order))
    partials[[3, 7, 11, 15]] *= 1 + 1 * over_voltage  # the hum of an overloaded motor
    # One-sided mass moves the shaft's own orders, one odd blade all orders about the blade pass.
    partials[:4] += 0.9 * context.amount("unbalance") / np.arange(1, 5) ** 1.2
    odd = np.exp(-0.5 * ((order - 2 * blades) / (1.5 * blades)) ** 2)
    partials += 0.22 * context.amount("broken_blade") * odd
    tones = ph.tones(partials, context.unit("phases"), turns, speed)
    tones *= np.float32(ph.gain(-3 + drive.normal(0, 0.7)))

    points = ((40, 0.0), (200, 2.0), (1000, -9.0), (4000, -24.0), (8000, -34.0))
    curve = ph.noise_curve(grid.samples, points)
    curve = curve * ph.fixed_wavy_curve(grid.samples, context.body("duct"), 2.5, 0.35)
    # Clogging makes more and slower turbulence.
    curve *= ph.tilt(grid, [100, 250, 900, 2500], [0, 2, 2, -1], context.amount("clogging"))
    flow_rng = context.rng("flow")
    curve = curve * ph.wavy_curve(flow_rng, grid, 0.5, 1.0)
    curve *= np.float32(ph.gain(flow_rng.normal(-2, 0.7)))
    spectrum = ph.to_spectrum(tones) + ph.noise_spectrum(flow_rng, grid, curve)

    rubbing = context.amount("rubbing")
    if rubbing:  # the blades touch the guard in one place of every turn
        rng = context.rng("fault")
        scrape = 0.7 * rng.standard_normal(grid.samples, dtype=np.float32)
        contact = np.maximum(np.cos(2 * np.pi * turns), 0).astype(np.float32)
        scrape *= np.square(np.square(contact))
        guard = ph.resonances(grid.samples, ph.random_modes(context.body("guard"), 4, 1800, 6500))
        spectrum += ph.to_spectrum(ph.at_level(scrape, -24)) * guard * np.float32(rubbing)
    return spectrum


def gearbox(context: ClipContext) -> np.ndarray:
    """Tooth mesh with sidebands of both shafts, and the rattle of teeth that carry no load.

    The voltage sets the speed; the weight loads the teeth and slows the motor a little; another
    ``id`` is another gearbox.
    """
    grid, drive = context.grid, context.rng("drive")
    individual = context.attributes.get("id", "")
    unit = context.unit(individual)
    teeth, pinion = int(unit.integers(37, 53)), int(unit.integers(13, 19))
    volts, weight = context.value("volt", 1.5), context.value("wt", 50)
    over_voltage = context.amount("over_voltage")
    nominal = unit.uniform(2.4, 2.8) * volts**0.85 * (1 - 0.0004 * weight)
    speed = nominal * (1 + 0.004 * drive.standard_normal() + 0.008 * over_voltage)
    shaft = ph.rotation(drive, grid, speed, 0.0015)
    turns = shaft.sampled(grid)
    load = 1 + weight / 150

    # Partials of the slow shaft: the mesh and its sidebands lie on exact multiples.
    partials = np.zeros(2200)
    side = np.arange(-4, 5)
    wear, askew = context.amount("worn_teeth"), context.amount("misalignment")
    mesh = unit.lognormal(0, 0.3, 7) / np.arange(1, 8) ** 1.1 * load**0.6
    mesh[1:4] *= 1 + 1.0 * wear
    slow_side = unit.uniform(0.08, 0.2) * (1 + 2.5 * askew) / (1 + np.abs(side))
    fast_side = unit.uniform(0.1, 0.25) * (1 + wear) / (1 + np.abs(side))
    ratio = teeth / pinion
    for number, height in enumerate(mesh, start=1):
        center = number * teeth
        for offset, low, high in zip(side, slow_side, fast_side, strict=True):
            partials[center + offset - 1] += height * (1.0 if offset == 0 else low)
            partials[center + round(offset * ratio) - 1] += height * high * (offset != 0)
    # The motor ahead of the pinion: brush and slot tones.
    motor = np.arange(1, 10) * pinion * 12
    motor_level = 0.25 * unit.lognormal(0, 0.6, 9) / (1 + motor * nominal / 1500)
    motor_level *= 1 + 0.4 * over_voltage
    partials[motor[motor < 2200] - 1] += motor_level[motor < 2200]
    partials *= drive.lognormal(0, 0.1, len(partials))
    force = ph.tones(partials, context.unit(f"{individual}/phases"), turns, speed)
    force = ph.at_level(force, -4 + drive.normal(0, 0.6))
    case = ph.fixed_wavy_curve(grid.samples, context.body(f"case{individual}"), 3.5, 0.3)
    spectrum = ph.to_spectrum(force) * case

    # Rolling and rattling noise swells once a turn: no gear is quite round.
    friction, dry = context.rng("friction"), context.amount("lack_of_grease")
    points = ((60, 0.0), (400, -4.0), (1500, -10.0), (4000, -17.0), (8000, -28.0))
    curve = ph.noise_curve(grid.samples, points) * case * ph.wavy_curve(friction, grid, 0.5, 1.0)
    curve *= ph.tilt(grid, [1500, 3000, 6500, 8000], [0, 2.5, 2.5, 0], dry)
    rattle = ph.noise(friction, grid, curve)
    rattle *= ph.swell([0.3, 0.18, 0.1, 0.06], context.unit("swing"), turns)
    rattle *= np.float32(ph.gain(-7 + 6 * np.log2(volts / 1.5 + 0.4) + friction.normal(0, 0.6)))
    spectrum += ph.to_spectrum(rattle)

    chipped = context.amount("chipped_tooth")
    if chipped:  # one blow a turn of the pinion, and it rings in the case
        rng = context.rng("fault")
        times = shaft.strikes(rng, ratio, 0.002)
        blows = ph.impulses(grid, times, rng.lognormal(0, 0.3, len(times)))
        modes = ph.random_modes(context.body(f"case{individual}"), 6, 700, 6000, (10, 40))
        ringing = ph.resonances(grid.samples, modes)
        spectrum += ph.to_spectrum(ph.at_level(blows, -18)) * ringing * np.float32(chipped)
    return spectrum


def bearing(context: ClipContext) -> np.ndarray:
    """Rolling noise of a test rig's bearing, tones of its motor, and the path to the microphone.

    ``vel`` is the speed in turns a second; ``loc`` the place of the microphone.
    """
    grid, drive = context.grid, context.rng("drive")
    unit = context.unit()
    nominal = context.value("vel", 10)
    speed = nominal * (1 + 0.004 * drive.standard_normal())
    shaft = ph.rotation(drive, grid, speed, 0.0012)
    turns = shaft.sampled(grid)
    louder = 20 * np.log10(nominal / 12) * 0.45 - 4.5

    count = min(ph.TABLE_SIZE // 2 - 2, int(7600 / nominal))
    order = np.arange(1, count + 1)
    heights = unit.lognormal(0, 0.8, 4096)[:count]
    partials = 0.05 * heights / (1 + order * nominal / 350) ** 1.2
    poles = order % 14 == 0  # the motor's slots
    partials[poles] += 0.5 * heights[poles] ** 0.5 / (1 + order[poles] * nominal / 1200) ** 1.6
    skew = context.amount("eccentricity")
    partials[: min(6, count)] += 0.3 * skew / np.arange(1, 7)[: min(6, count)]
    for near in (-2, -1, 1, 2):
        places = order[poles] + near
        places = places[(places > 0) & (places <= count)] - 1
        partials[places] += 0.06 * skew / (1 + places * nominal / 1200)
    partials *= drive.lognormal(0, 0.12, count)
    tones = ph.tones(partials, context.unit("phases"), turns, speed)
    tones *= np.float32(ph.gain(-1 + drive.normal(0, 0.6)))
    spectrum = ph.to_spectrum(tones)

    roll = context.rng("roll")
    points = ((60, 2.0), (300, 0.0), (1500, -8.0), (4000, -16.0), (8000, -27.0))
    curve = ph.noise_curve(grid.samples, points)
    curve = curve * ph.fixed_wavy_curve(grid.samples, context.body("rig"), 3.0, 0.35)
    curve *= ph.wavy_curve(roll, grid, 0.5, 1.0)
    curve *= np.float32(ph.gain(-2 + roll.normal(0, 0.6)))
    spectrum += ph.noise_spectrum(roll, grid, curve)

    blows = _bearing_blows(context, shaft, turns)
    if blows is not None:
        modes = ph.random_modes(context.body("housing"), 5, 2200, 6200, (12, 40))
        spectrum += ph.to_spectrum(blows) * ph.resonances(grid.samples, modes)
    spectrum *= np.float32(ph.gain(louder))

    place = context.attributes.get("loc", "A")
    spectrum *= ph.fixed_wavy_curve(grid.samples, f"bearing/loc/{place}", 3.0, 0.5)
    return spectrum


def _bearing_blows(
    context: ClipContext, shaft: ph.Rotation, turns: np.ndarray
) -> np.ndarray | None:
    """Blows of rolling elements on a defect, as a force."""
    grid = context.grid
    amount, rng = context.severity, context.rng("fault")
    if context.fault == "outer_race":
        times = shaft.strikes(rng, OUTER_RACE_RATE, 0.01)
        heights = rng.lognormal(0, 0.25, len(times))
    elif context.fault == "inner_race":  # the defect passes in and out of the loaded zone
        times = shaft.strikes(rng, INNER_RACE_RATE, 0.01)
        angle = np.interp(times, grid.time, turns)
        heights = rng.lognormal(0, 0.25, len(times)) * (0.55 + 0.45 * np.cos(2 * np.pi * angle))
    elif context.fault == "rolling_element":
        times = shaft.strikes(rng, BALL_RATE, 0.02)
        angle = np.interp(times, grid.time, turns) * CAGE_RATE
        heights = rng.lognormal(0, 0.35, len(times)) * (0.5 + 0.5 * np.cos(2 * np.pi * angle))
    elif context.fault == "contamination":  # grains between ball and race, whenever one comes by
        count = rng.poisson(6 * OUTER_RACE_RATE * grid.seconds)
        times = rng.uniform(0, grid.seconds, count)
        heights = rng.lognormal(-0.5, 0.9, count)
    else:
        return None
    if not len(times):
        return None
    return ph.at_level(ph.impulses(grid, times, heights), -12 + amount)
