"""The summary of a clip against its table, in float64."""

import dataclasses

import librosa
import numpy as np
import pytest

from asdproto.features import FeatureSettings, audio_features, filterbank

SETTINGS = FeatureSettings(summary=True, n_fft=256, hop_length=128, n_mels=16)
BANDS = [(2, 3), (3, 4), (4, 5), (5, 7), (7, 9), (9, 12), (12, 16), (16, 22), (22, 30), (30, 42),
         (42, 65)]  # fmt: skip


def clip(frames):
    """Noise of uneven color that is louder every sixteen frames."""
    rng = np.random.default_rng(frames)
    samples = (frames - 1) * SETTINGS.hop_length
    audio = np.convolve(rng.normal(0, 0.1, samples), [1, 0.9, 0.3], "same")
    return audio * (1 + np.sin(2 * np.pi * np.arange(samples) / (16 * SETTINGS.hop_length)))


def modulation(levels):
    """Of the levels of one group of bands, stretch by stretch and bin by bin."""
    starts = {max(len(levels) - 128, 0), 0} | ({36} if len(levels) == 200 else set())
    power = np.zeros(65)
    for start in starts:
        stretch = levels[start : start + 128]
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(len(stretch)) / len(stretch))
        moves = (stretch - np.mean(stretch)) * window
        for index in range(65):
            wave = np.exp(-2j * np.pi * index * np.arange(len(stretch)) / 128)
            power[index] += abs(np.sum(moves * wave)) ** 2 / np.sum(window**2) / len(starts)
    return [10 * np.log10(np.mean(power[low:high]) + 1e-3) for low, high in BANDS]


@pytest.mark.parametrize("frames", [200, 50])
def test_the_four_vectors(frames):
    audio = clip(frames)
    power = np.abs(librosa.stft(audio, n_fft=256, hop_length=128, dtype=complex)).T ** 2
    plain = dataclasses.replace(SETTINGS, summary=False)
    mel, inverted = (
        filterbank(dataclasses.replace(plain, scale=scale)) for scale in ("mel", "inverted")
    )
    spectrum, bands = 10 * np.log10(power), 10 * np.log10(power @ mel.T)
    groups = [bands[:, first : first + 8].mean(axis=1) for first in (0, 8)]
    expected = {
        "quiet": np.percentile(10 * np.log10(power @ inverted.T), 25, axis=0),
        "steady": np.sort(spectrum, axis=0)[[(frames - 1) // 2, frames // 2]].mean(axis=0),
        "change": np.mean([abs(b - a) for a, b in zip(spectrum, spectrum[1:])], axis=0),  # noqa: B905, RUF007
        "modulation": np.transpose([modulation(levels) for levels in groups]).reshape(-1),
    }
    [summary] = audio_features(audio, 16000, SETTINGS)
    parts = SETTINGS.parts()
    assert [part.name for part in parts] == list(expected)
    assert len(summary) == SETTINGS.columns
    for part in parts:
        # float32 spectra of 90 dB.
        np.testing.assert_allclose(summary[part.columns], expected[part.name], atol=0.01)


def test_what_a_lower_rate_did_not_record_is_unknown():
    audio = clip(200)
    [summary] = audio_features(audio, 8000, SETTINGS)
    # 90 % of half of 8 kHz; the highest bin of a filter decides.
    for part in SETTINGS.parts():
        np.testing.assert_array_equal(np.isnan(summary[part.columns]), part.tops > 3600)
    steady, modulations = SETTINGS.parts()[1], SETTINGS.parts()[3]
    np.testing.assert_allclose(steady.tops, np.arange(129) * 62.5)
    assert len(set(modulations.tops)) == 2
