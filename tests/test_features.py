"""Features against librosa, against the formula in float64, and over every real recording."""

import dataclasses

import librosa
import numpy as np
import pytest
import soundfile

from asdproto.audio import read_audio
from asdproto.errors import DataError
from asdproto.features import FeatureSettings, audio_features, file_features, filterbank, log_mel


def noise(samples, seed=0, scale=0.1):
    """Colored noise with a few tones: uneven over frequency, as machines are."""
    rng = np.random.default_rng(seed)
    white = rng.normal(size=samples)
    time = np.arange(samples) / 16000
    tones = sum(np.sin(2 * np.pi * f * time) / (k + 1) for k, f in enumerate((50, 730, 5100)))
    return (scale * (np.convolve(white, [1, 0.9, 0.3], "same") + tones)).astype(np.float32)


def librosa_db(audio, settings):
    """What librosa computes, with its own filters or those of the definition below."""
    spectrum = np.abs(librosa.stft(audio, n_fft=settings.n_fft, hop_length=settings.hop_length))
    names = ("n_fft", "n_mels", "fmin", "fmax")
    bank = (
        inverted_bank(settings)
        if settings.scale == "inverted"
        else librosa.filters.mel(sr=16000, **{name: getattr(settings, name) for name in names})
    )
    mel = bank @ spectrum.astype(np.float64) ** settings.power
    return librosa.power_to_db(mel, amin=settings.floor, top_db=None).T


def inverted_bank(settings):
    """Triangles on the inverted mel scale, from its definition, in float64.

    f_inv(f) = mel(nyquist) - mel(nyquist - f): Sahidullah et al., 2015. The edges are equally
    spaced on it; each triangle has unit area.
    """
    nyquist = settings.sample_rate / 2
    top = nyquist if settings.fmax is None else settings.fmax

    def scale(f):
        return librosa.hz_to_mel(nyquist) - librosa.hz_to_mel(nyquist - f)

    points = np.linspace(scale(settings.fmin), scale(top), settings.n_mels + 2)
    edges = nyquist - librosa.mel_to_hz(librosa.hz_to_mel(nyquist) - points)
    bins = np.arange(settings.n_fft // 2 + 1) * settings.sample_rate / settings.n_fft
    bank = np.zeros((settings.n_mels, bins.size))
    for k in range(settings.n_mels):
        low, center, high = edges[k : k + 3]
        rise, fall = (bins - low) / (center - low), (high - bins) / (high - center)
        bank[k] = np.maximum(0, np.minimum(rise, fall)) * 2 / (high - low)
    return bank


SETTINGS = [
    FeatureSettings(),
    FeatureSettings(n_mels=40, n_fft=512, hop_length=160, power=1.0),
    FeatureSettings(fmin=200.0, fmax=7300.0, n_mels=64),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
def test_inverted_filters_are_those_of_the_definition(settings):
    bank = filterbank(settings)
    assert bank.dtype == np.float32
    # float32 filters of up to 0.05 against float64 ones.
    np.testing.assert_allclose(bank, inverted_bank(settings), rtol=2e-5, atol=2e-8)
    with pytest.raises(ValueError, match="read-only"):
        bank[0, 0] = 1


@pytest.mark.parametrize("settings", [*SETTINGS, FeatureSettings(scale="mel")], ids=repr)
def test_log_mel_agrees_with_librosa(settings):
    audio = noise(33333)
    ours = log_mel(audio, settings)
    assert ours.dtype == np.float32
    assert ours.shape == (settings.frames(33333), settings.n_mels)
    # Both sides transform in float32; a filter's output is good to about 1e-5 of itself where the
    # frame's loudest bin is not more than 60 dB above, so to 1e-3 dB.
    np.testing.assert_allclose(ours, librosa_db(audio, settings), rtol=0, atol=1e-3)


def test_frames_can_hold_their_samples(tmp_path):
    plain = FeatureSettings(n_mels=16, n_fft=512, hop_length=256)
    settings = dataclasses.replace(plain, waveform=True)
    audio = noise(3000)
    soundfile.write(tmp_path / "clip.wav", audio, 16000, subtype="FLOAT")
    frames, _ = file_features(tmp_path / "clip.wav", settings)
    assert frames.shape == (12, settings.columns) == (12, 16 + 256)
    np.testing.assert_array_equal(frames[:, :16], log_mel(audio, plain))
    samples = frames[:, 16:].reshape(-1)
    np.testing.assert_array_equal(samples[:3000], audio)
    assert not samples[3000:].any()


def test_audio_that_cannot_be_used():
    for audio, words in (
        (np.zeros((2, 4096)), r"found \[2, 4096\]"),
        (np.zeros(1023), "at least one window of 1024 samples, found 1023"),
        (np.r_[np.zeros(2000), np.nan, np.zeros(2000)], "not finite"),
        (np.full(4096, 1e30), "too large"),
    ):
        with pytest.raises(ValueError, match=words):
            log_mel(audio)
    # And rates that no recorder has, at once.
    for rate in (1, float("nan")):
        with pytest.raises(DataError, match="Hz; expected 4000 to 384000 Hz"):
            audio_features(noise(4096), rate, FeatureSettings(), name="waveform 3")


def test_settings_that_make_no_sense():
    for wrong, words in (
        ({"hop_length": 2048}, "at least hop_length"),
        ({"fmax": 9000.0}, "at most 8000 Hz"),
        ({"fmin": 500.0, "fmax": 400.0}, "fmin must be below fmax"),
    ):
        with pytest.raises(ValueError, match=words):
            FeatureSettings(**wrong)
    with pytest.raises(ValueError, match="of 128 mel filters are narrower than a bin"):
        filterbank(FeatureSettings(n_fft=256, hop_length=128))


def test_every_real_recording_goes_through(real_data):
    files = [
        *sorted((real_data / "dcase2023_clips").rglob("*.wav")),
        *sorted((real_data / "mimii_fan_id_00").rglob("*.flac")),
        *sorted((real_data / "mimii_fan_id_00").rglob("*.wav")),
    ]
    assert len(files) == 28 + 40 + 2
    for number, file in enumerate(files):
        audio, info = read_audio(file)
        assert info.channels == (8 if "eight" in str(file) else 1)
        assert info.samples == len(audio)
        assert not info.faults()
        features, _ = file_features(file)
        assert features.shape == (1 + len(audio) // 512, 128)
        assert -157 < features.min() < features.max() < 60
        if number % 14 == 0:  # librosa is slow
            # Some machines are 90 dB louder at the bottom than at the top of the band, where a
            # float32 transform is then good to 0.01 dB; float16 steps by 0.06 dB there. librosa
            # gets float64, so that the deviation is ours alone.
            expected = librosa_db(audio.astype(np.float64), FeatureSettings())
            np.testing.assert_allclose(features, expected, rtol=0, atol=0.02)
