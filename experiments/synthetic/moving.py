"""Slider, valve, toy car and toy train: machines whose sound comes and goes.

As in :mod:`experiments.synthetic.rotating`, a model maps a :class:`ClipContext` to the
spectrum of the machine's dry sound.
"""

import numpy as np

from experiments.synthetic import physics as ph
from experiments.synthetic.context import ClipContext

SLIDER_FAULTS = ("rail_damage", "lack_of_grease", "loose_belt", "screw_damage")
VALVE_FAULTS = ("contamination", "leak", "short_stroke", "over_voltage")
TOY_CAR_FAULTS = ("bent_shaft", "damaged_gear", "deformed_tyre", "over_voltage")
TOY_TRAIN_FAULTS = ("flat_wheel", "broken_rail", "bent_axle", "over_voltage")

_STROKE = 0.45  # meters
_PITCH = 0.012  # meters a turn of the screw
_REST = 0.18  # seconds between strokes


def slider(context: ClipContext) -> np.ndarray:
    """Strokes to and fro: tones of screw and servo that rise and fall with the speed, friction.

    ``vel`` is the top speed in mm/s, ``ac`` the acceleration in g.
    """
    grid, drive = context.grid, context.rng("drive")
    unit = context.unit()
    top = context.value("vel", 700) / 1000 * (1 + 0.004 * drive.standard_normal())
    pull = 25 * context.value("ac", 0.06) * (1 + 0.01 * drive.standard_normal()) + 0.5
    top = min(top, np.sqrt(pull * _STROKE))
    rise, stroke = top / pull, _STROKE / top + top / pull
    period = stroke + _REST
    time = np.linspace(0, grid.seconds, int(400 * grid.seconds) + 2)
    clock = time / period + drive.uniform(0, 2)
    within = (clock % 1) * period
    pace = np.clip(np.minimum(within, stroke - within) / rise, 0, 1)
    speed = top * pace
    travel = ph.ride(time, speed)
    turns = travel.sampled(grid) / _PITCH
    move = np.interp(grid.time, time, speed).astype(np.float32)
    # Where the carriage stands: one way in even strokes, back in odd ones.
    gone = np.clip(_distance(within, rise, stroke, top), 0, _STROKE)
    there = np.where(np.floor(clock) % 2 == 0, gone, _STROKE - gone)

    order = np.arange(1, 120)
    partials = unit.lognormal(0, 0.5, len(order)) / (1 + order / 3)
    partials[[7, 23, 47]] += np.array([0.5, 0.5, 0.35])  # the servo's poles and their multiples
    partials *= drive.lognormal(0, 0.1, len(order))
    partials[order * top / _PITCH > 7600] = 0
    damaged = context.amount("screw_damage")
    partials[12:60] += 0.10 * damaged
    tones = ph.tones(partials, context.unit("phases"), turns)
    tones = tones * move * np.float32(0.5 * ph.gain(drive.normal(0, 0.6)))
    frame = ph.fixed_wavy_curve(grid.samples, context.body("frame"), 3.0, 0.35)
    spectrum = ph.to_spectrum(tones) * frame

    rub, dry = context.rng("friction"), context.amount("lack_of_grease")
    points = ((80, 0.0), (500, 0.0), (2000, -5.0), (5000, -10.0), (8000, -18.0))
    curve = ph.noise_curve(grid.samples, points) * frame * ph.wavy_curve(rub, grid, 0.5, 1.0)
    curve *= ph.tilt(grid, [900, 2200, 7000], [0, 3, 3], dry)
    friction = ph.noise(rub, grid, curve)
    # Rails and balls have their own roughness along the way.
    rough = unit.lognormal(0, 0.2, 24)
    bumps = np.interp(there, np.linspace(0, _STROKE, 24), rough)
    friction *= move * np.interp(grid.time, time, bumps).astype(np.float32)
    friction *= np.float32(ph.gain(-1 + rub.normal(0, 0.6)))

    stops = _reversals(clock, time)
    knock = ph.ring(context.body("stop"), 8, 150, 3000, 0.12)
    ph.add_bursts(friction, stops, 0.8 * drive.lognormal(0, 0.15, len(stops)), knock)
    rng = context.rng("fault")
    spot = context.amount("rail_damage")
    if spot:  # every passage over the spot knocks
        place = float(rng.uniform(0.2, 0.8)) * _STROKE
        passed = np.flatnonzero(np.diff(np.sign(there - place)))
        click = ph.ring(context.body("rail"), 10, 1200, 6500, 0.05)
        heights = 3.0 * spot * rng.lognormal(0, 0.2, len(passed)) * (0.3 + speed[passed])
        ph.add_bursts(friction, time[passed], heights, click)
    loose = context.amount("loose_belt")
    if loose:  # rattles after every reversal
        click = ph.ring(context.body("belt"), 8, 500, 4500, 0.03)
        for stop in stops:
            beats = stop + np.cumsum(rng.uniform(0.015, 0.04, 9))
            ph.add_bursts(friction, beats, 1.6 * loose * 0.8 ** np.arange(9), click)
    return spectrum + ph.to_spectrum(friction)


def _distance(within: np.ndarray, rise: float, stroke: float, top: float) -> np.ndarray:
    """Way gone since a stroke began, under a trapezoidal speed."""
    ramp = np.minimum(within, rise)
    flat = np.clip(within - rise, 0, stroke - 2 * rise)
    brake = np.clip(within - (stroke - rise), 0, rise)
    return top * (ramp**2 / (2 * rise) + flat + brake - brake**2 / (2 * rise))


def _reversals(clock: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Times at which a new stroke begins."""
    whole = np.arange(np.ceil(clock[0]), np.floor(clock[-1]) + 1)
    return np.interp(whole, clock, time)


# Pattern -> (seconds, 1 for opening or 0 for closing) within a cycle, and the cycle's length.
_PATTERNS: dict[str, tuple[tuple[tuple[float, int], ...], float]] = {
    "00": (((0.0, 1), (0.55, 0)), 1.1),
    "01": (((0.0, 1), (0.25, 0)), 0.5),
    "02": (((0.0, 1), (1.3, 0), (2.0, 1), (2.3, 0)), 2.9),
    "03": (((0.0, 1), (0.4, 0), (0.8, 1), (2.1, 0)), 2.7),
    "04": (((0.0, 1), (0.45, 0)), 0.9),
    "05": (((0.0, 1), (0.3, 0), (0.6, 1), (1.2, 0)), 1.8),
}
# How a panel between valve and microphone dulls the sound: Hz of the roll-off, dB at 8 kHz.
_PANELS = {"open": (8000, 0.0), "bs-c": (1500, -7.0), "b-c": (2500, -5.0), "s-c": (1000, -10.0)}


def valve(context: ClipContext) -> np.ndarray:
    """Solenoid valves that open and close by a pattern: a click, a knock, a puff of air."""
    grid = context.grid
    plans = {
        name: context.attributes[key]
        for name, key in (("v1", "pat"), ("v1", "v1pat"), ("v2", "v2pat"))
        if key in context.attributes
    }
    sound = np.zeros(grid.samples, np.float32)
    for name, pattern in plans.items():
        _actuate(context, name, pattern, sound)
    hiss = context.rng("supply")
    points = ((100, 0.0), (600, -6.0), (2500, -4.0), (6000, -3.0), (8000, -8.0))
    curve = ph.noise_curve(grid.samples, points)
    curve = curve * np.float32(ph.gain(-30 + hiss.normal(0, 1)))
    leak = context.amount("leak")
    if leak:  # air through the closed seat
        rng = context.rng("fault")
        center = np.log2(rng.uniform(2500, 5500))
        jet = np.exp(-0.5 * ((grid.octave - center) / 0.45) ** 2)
        curve = np.hypot(curve, 0.045 * leak * jet).astype(np.float32)
    spectrum = ph.to_spectrum(sound) + ph.noise_spectrum(hiss, grid, curve)
    corner, fall = _PANELS[context.attributes.get("panel", "open")]
    dull = fall * np.clip(np.log2(np.maximum(grid.hz, 1) / corner), 0, None)
    return spectrum * np.exp2(dull / 6.02).astype(np.float32) * np.float32(ph.gain(23))


def _actuate(context: ClipContext, name: str, pattern: str, sound: np.ndarray) -> None:
    """Adds one valve's actuations to ``sound``."""
    rng = context.rng(name)
    faulty = context.rng(f"fault {name}")
    hard = 1 + 0.45 * context.amount("over_voltage")
    dirty, short = context.amount("contamination"), context.amount("short_stroke")
    body = context.body(name)
    click = ph.ring(f"{body} click", 14, 900, 7200, 0.030)
    knock = ph.ring(f"{body} knock", 12, 250, 4200, 0.060)
    steps, cycle = _PATTERNS[pattern]
    cycle *= 1 + 0.003 * rng.standard_normal()
    first = -rng.uniform(0, cycle)
    for begin in np.arange(first, context.grid.seconds, cycle):
        for offset, opens in steps:
            time = begin + offset + 0.002 * rng.standard_normal()
            height, knock_height, air_height = rng.lognormal(0, 0.12, 3)
            lag = (0.011 if opens else 0.016) + 0.0005 * rng.standard_normal()
            air = ph.puff(rng, 0.16, 0.003, 0.5)
            slow, weak = faulty.uniform(0.5, 1.5, 2)
            # Dirt delays the plunger and takes its force; it then sighs where it should knock.
            lag += 0.010 * dirty * slow
            knock_height *= max(0.15, (1 - 0.3 * dirty) * (1 - 0.5 * short * weak))
            height *= (1 if opens else 0.5) * hard * max(0.3, 1 - 0.5 * short * weak)
            scale = 0.9 if opens else 0.6
            ph.add_bursts(sound, time, height, click)
            ph.add_bursts(sound, time + lag, 1.3 * knock_height * scale * hard, knock)
            if not opens:  # the outlet vents
                vent = 0.11 * air_height * (1 + 0.4 * dirty)
                ph.add_bursts(sound, time + 0.01, vent, air)


def toy_car(context: ClipContext) -> np.ndarray:
    """A toy car on a roller bench: motor and gears run up, run, and run down; the wheels rattle.

    ``car`` is the model (a letter) and its copy (a digit), ``spd`` the supply in tenths of a volt,
    ``mic`` the microphone.
    """
    grid, drive = context.grid, context.rng("drive")
    model, copy = tuple(context.attributes["car"])
    made = ph.stream("toy car", model)
    own = ph.stream("toy car", model, copy)
    volts = float(context.attributes["spd"].rstrip("V")) / 10
    over_voltage = context.amount("over_voltage")
    wheel_hz = made.uniform(3.6, 4.6) * volts * (1 + 0.02 * own.standard_normal())
    wheel_hz *= 1 + 0.006 * drive.standard_normal() + 0.02 * over_voltage
    ratio, pinion = int(made.integers(4, 7)), int(made.integers(8, 12))
    begin = grid.seconds * (0.12 + 0.02 * drive.standard_normal())
    end = grid.seconds * (0.86 + 0.025 * drive.standard_normal())
    time = np.linspace(0, grid.seconds, int(200 * grid.seconds) + 2)
    rise = 1 - np.exp(-np.clip(time - begin, 0, None) / 0.18)
    pace = rise * np.exp(-np.clip(time - end, 0, None) / 0.22)
    wander = 1 + 0.01 * np.interp(time, time[::100], drive.standard_normal(len(time[::100])))
    turns = ph.ride(time, wheel_hz * pace * wander, drive.uniform()).sampled(grid)
    run = np.interp(grid.time, time, pace).astype(np.float32)

    # Partials of the wheel: the mesh of the last gear, the motor's commutator, and what is between.
    order = np.arange(1, 500)
    partials = 0.05 * made.lognormal(0, 0.6, 499) / (1 + order * wheel_hz / 900)
    mesh, brush = ratio * pinion, ratio * 6
    bent, chipped = context.amount("bent_shaft"), context.amount("damaged_gear")
    for base, height in ((mesh, 0.7), (brush, 0.4)):
        for number in range(1, 499 // base):
            tall = height * own.lognormal(0, 0.35) / number**0.9
            partials[number * base - 1] += tall
            for near in (-1, 1):  # the wheel wobbles
                partials[number * base - 1 + near] += tall * (0.25 + 0.3 * bent)
    partials[: 2 * mesh] += 0.15 * chipped
    partials *= drive.lognormal(0, 0.12, 499)
    force = ph.tones(partials, ph.stream("toy car", model, copy, "phases"), turns, wheel_hz)
    force = ph.at_level(force * run, -2 + drive.normal(0, 0.6))

    rng = context.rng("rattle")
    points = ((80, -6.0), (400, 0.0), (1200, 0.0), (3000, -9.0), (6000, -12.0), (8000, -18.0))
    curve = ph.noise_curve(grid.samples, points) * ph.wavy_curve(rng, grid, 0.5, 1.0)
    rattle = ph.noise(rng, grid, curve)
    made_swing = ph.stream("toy car", model, "swing")
    rattle *= ph.swell([0.2 + 0.15 * bent, 0.1], made_swing, turns) * run
    rattle *= np.float32(ph.gain(-1 + rng.normal(0, 0.6)))
    flat = context.amount("deformed_tyre")
    if flat:  # thumps once a turn
        times = grid.time[np.flatnonzero(np.diff(np.floor(turns)))]
        thump = ph.ring(f"toy car {model} tyre", 8, 120, 1800, 0.03)
        heights = 2.0 * flat * np.interp(times, grid.time, run)
        ph.add_bursts(rattle, times, heights, thump)
    return _through_shell(context, force + rattle, f"toy car {model}", copy, 3.5)


def toy_train(context: ClipContext) -> np.ndarray:
    """A toy train that passes the microphone: rolling noise, wheels over rail joints, a motor.

    ``car`` as for the toy car, ``spd`` the setting of the supply, ``mic`` the microphone.
    """
    grid, drive = context.grid, context.rng("drive")
    model, copy = tuple(context.attributes["car"])
    made = ph.stream("toy train", model)
    own = ph.stream("toy train", model, copy)
    over_voltage = context.amount("over_voltage")
    pace = 0.055 * float(context.attributes["spd"]) * (1 + 0.01 * drive.standard_normal())
    pace *= 1 + 0.02 * over_voltage  # meters a second
    meet = grid.seconds * (0.5 + 0.03 * drive.standard_normal())
    way = (pace / 0.35 * (grid.time - meet)).astype(np.float32)
    near = 1 / np.sqrt(1 + way * way)

    wheel = made.uniform(0.055, 0.065)
    hz = pace / wheel
    turns = ph.rotation(drive, grid, hz, 0.004).sampled(grid)
    order = np.arange(1, min(2400, int(7600 / hz)))
    partials = 0.06 * made.lognormal(0, 0.7, 2400)[: len(order)] / (1 + order * hz / 1500)
    for number in range(1, len(order) // 72):
        partials[number * 72 - 1] += 0.6 * own.lognormal(0, 0.35) / number**0.8
    bent = context.amount("bent_axle")
    for number in range(1, min(9, len(order) // 72)):
        for side in (-2, -1, 1, 2):
            partials[number * 72 - 1 + side] += 0.15 * bent / number**0.8
    partials *= drive.lognormal(0, 0.12, 2400)[: len(order)]
    motor = ph.tones(partials, ph.stream("toy train", model, copy, "phases"), turns, hz)
    motor = ph.at_level(motor * (0.35 + 0.65 * near), -4 + drive.normal(0, 0.6))

    rng = context.rng("rolling")
    points = ((80, -4.0), (400, 0.0), (1500, -3.0), (4000, -9.0), (8000, -16.0))
    curve = ph.noise_curve(grid.samples, points) * ph.wavy_curve(rng, grid, 0.5, 1.0)
    rolling = ph.noise(rng, grid, curve)
    swing = ph.swell([0.15 + 0.08 * bent, 0.08], ph.stream("toy train swing"), turns)
    rolling *= near * np.sqrt(near) * swing
    rolling = ph.at_level(rolling, -4 + rng.normal(0, 0.6))

    # Joints lie evenly along the rail; every axle of the train knocks at each of them.
    rail = ph.stream("toy train rail", context.section)
    joints = np.arange(-8, 9) * 0.22 + rail.normal(0, 0.01, 17)
    heights = rail.lognormal(0, 0.4, 17)
    joint_ring = ph.ring("toy train joint", 10, 300, 5000, 0.05)
    faulty = context.rng("fault")
    broken = context.amount("broken_rail")
    if broken:
        heights[int(faulty.integers(6, 11))] += 2.5 * broken
    for axle in (0.0, 0.05, 0.16, 0.21):
        times = meet + (joints + axle) / pace + 0.003 * drive.standard_normal(17)
        close = 1 / np.sqrt(1 + (joints / 0.35) ** 2)
        height = 6.0 * heights * close * drive.lognormal(0, 0.15, 17)
        ph.add_bursts(rolling, times, height, joint_ring)
    flat = context.amount("flat_wheel")
    if flat:  # the flat knocks on the rail once a turn
        times = grid.time[np.flatnonzero(np.diff(np.floor(turns)))]
        click = ph.ring(f"toy train {model} wheel", 8, 800, 6500, 0.02)
        heights = 2.0 * flat * np.interp(times, grid.time, near)
        ph.add_bursts(rolling, times, heights * faulty.lognormal(0, 0.2, len(times)), click)
    return _through_shell(context, motor + rolling, f"toy train {model}", copy, 3.0)


def _through_shell(
    context: ClipContext, sound: np.ndarray, model: str, copy: str, decibels: float
) -> np.ndarray:
    """Spectrum of a toy's sound behind its shell, as the clip's microphone hears it."""
    samples, mic = context.grid.samples, context.attributes["mic"]
    shell = ph.fixed_wavy_curve(samples, model, decibels, 0.3)
    shell = shell * ph.fixed_wavy_curve(samples, f"{model}{copy}", 1.2, 0.3)
    return ph.to_spectrum(sound) * shell * ph.fixed_wavy_curve(samples, f"toy mic {mic}", 2.0, 0.5)
