"""What there is to say of a recording besides its samples, and how it differs from others."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_QUIET = -80.0  # dB re full scale, below which nothing is heard
_MUCH_CLIPPED = 1e-3  # share of samples
_FAR = 10.0  # dB beyond the levels of training recordings


@dataclass(frozen=True)
class AudioInfo:
    """What a recording is, besides its samples.

    Attributes:
      sample_rate: Hertz.
      samples: Samples of each channel.
      channels: Number of channels.
      channel: The one that is used.
      level: Mean power, decibels re full scale; -200 for zeros.
      peak: Largest magnitude, full scale 1.
      clipped: Share of the samples at full scale, 0 to 1; 0 where the peak is below or beyond it.
      is_constant: Whether it holds one value throughout: silence, or a broken microphone.
    """

    sample_rate: int
    samples: int
    channels: int = 1
    channel: int = 0
    level: float = 0.0
    peak: float = 0.0
    clipped: float = 0.0
    is_constant: bool = False

    @property
    def seconds(self) -> float:
        """Length of the clip."""
        return self.samples / self.sample_rate

    def samples_at(self, sample_rate: int) -> int:
        """Samples of the clip once it is converted to another rate."""
        return math.ceil(self.samples * (float(sample_rate) / self.sample_rate))

    def faults(self) -> list[str]:
        """What a recording of a machine at work should not be, in words."""
        said = []
        if self.is_constant:
            said.append("one value throughout")
        elif self.level < _QUIET:
            said.append(f"nearly silent, {self.level:.0f} dB re full scale")
        if self.channel:
            said.append(f"channel 0 silent, channel {self.channel} taken")
        if self.clipped > _MUCH_CLIPPED:
            said.append(f"{100 * self.clipped:.2g} % of the samples clipped")
        if self.peak > 1.01:  # full scale may be rounded
            said.append(f"samples up to {self.peak:.3g} times full scale")
        return said

    def notes(self, sample_rate: int) -> list[str]:
        """What was odd about the recording, and what was done to have it at a sample rate."""
        said = self.faults()
        if self.channels > 1 and not self.channel:
            said.append(f"{self.channels} channels, channel 0 taken")
        if self.sample_rate != sample_rate:
            said.append(f"{self.sample_rate} Hz, resampled to {sample_rate} Hz")
        return said


def describe_samples(
    samples: np.ndarray, sample_rate: int, *, channels: int = 1, channel: int = 0
) -> AudioInfo:
    """What can be said of the samples ``[samples]`` of the channel that is used."""
    low, high = float(samples.min()), float(samples.max())
    peak = max(high, -low)
    clipped = 0.0
    if 0.99 <= peak <= 1.01:
        clipped = np.count_nonzero(np.abs(samples) >= 0.99) / len(samples)
    return AudioInfo(
        sample_rate=sample_rate,
        samples=len(samples),
        channels=channels,
        channel=channel,
        level=10 * math.log10(max(float(np.dot(samples, samples)) / len(samples), 1e-20)),
        peak=peak,
        clipped=clipped,
        is_constant=low == high,
    )


def audio_statistics(infos: Iterable[AudioInfo]) -> dict[str, list[float]]:
    """What training recordings of a machine type, at least one, have in common; fit for json.

    Returns:
      ``sample_rates`` and ``channels`` that occur, and lowest and highest ``level`` and
      ``clipped`` of those that are not constant.
    """
    infos = list(infos)
    loud = [info for info in infos if not info.is_constant] or infos
    return {
        "sample_rates": sorted({info.sample_rate for info in infos}),
        "channels": sorted({info.channels for info in infos}),
        "level": [round(f(info.level for info in loud), 1) for f in (min, max)],
        "clipped": [round(f(info.clipped for info in loud), 5) for f in (min, max)],
    }


def compare_with_training(info: AudioInfo, statistics: Mapping[str, Sequence[float]]) -> list[str]:
    """Say what makes a recording unlike those that a detector was trained on.

    Args:
      info: Of the recording.
      statistics: What :func:`audio_statistics` returned for the training recordings of its
        machine type; empty where nothing is known of them.

    Returns:
      Notes for people, empty for a recording like the others: its own faults, unless training
      recordings had as much clipping, then other rates, channels and levels.
    """
    said = info.faults()
    if not statistics:
        return said
    if info.clipped <= 2 * statistics["clipped"][1]:
        said = [note for note in said if not note.endswith("clipped")]
    for value, name, unit in (
        (info.sample_rate, "sample_rates", "Hz"),
        (info.channels, "channels", "channels"),
    ):
        if value not in statistics[name]:
            usual = ", ".join(f"{known:g}" for known in statistics[name])
            said.append(f"{value} {unit} where training has {usual}")
    low, high = statistics["level"]
    if not info.is_constant and not low - _FAR <= info.level <= high + _FAR:
        usual = " to ".join(dict.fromkeys(f"{level:.0f}" for level in (low, high)))
        said.append(f"level {info.level:.0f} dB where training has {usual} dB")
    return said
