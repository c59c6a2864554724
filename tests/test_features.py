"""Features against librosa, against the formula in float64, and over every real recording."""

import dataclasses
import subprocess
import sys

import librosa
import numpy as np
import pytest
import soundfile

from asdproto.errors import DataError
from asdproto.features import (
    FeatureSettings,
    decode,
    file_features,
    filterbank,
    log_mel,
    read_audio,
)


def noise(samples, seed=0, scale=0.1):
    """Colored noise with a few tones: uneven over frequency, as machines are."""
    rng = np.random.default_rng(seed)
    white = rng.normal(size=samples)
    time = np.arange(samples) / 16000
    tones = sum(np.sin(2 * np.pi * f * time) / (k + 1) for k, f in enumerate((50, 730, 5100)))
    return (scale * (np.convolve(white, [1, 0.9, 0.3], "same") + tones)).astype(np.float32)


def librosa_db(audio, settings, inverted=False):
    """What librosa itself computes, with its own filters unless they are to be mirrored."""
    if not inverted:
        mel = librosa.feature.melspectrogram(
            y=audio,
            sr=settings.sample_rate,
            n_fft=settings.n_fft,
            hop_length=settings.hop_length,
            n_mels=settings.n_mels,
            fmin=settings.fmin,
            fmax=settings.fmax,
            power=settings.power,
        )
    else:
        spectrum = np.abs(librosa.stft(audio, n_fft=settings.n_fft, hop_length=settings.hop_length))
        mel = inverted_bank(settings) @ spectrum.astype(np.float64) ** settings.power
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
    FeatureSettings(n_mels=40, n_fft=512, hop_length=160),
    FeatureSettings(fmin=200.0, fmax=7300.0, n_mels=64),
    FeatureSettings(power=1.0),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
def test_inverted_filters_are_those_of_the_definition(settings):
    # float32 filters of up to 0.05 against float64 ones.
    np.testing.assert_allclose(filterbank(settings), inverted_bank(settings), rtol=2e-5, atol=2e-8)


def test_inverted_filters_mirror_the_plain_ones_and_resolve_high_frequencies():
    inverted, plain = filterbank(FeatureSettings()), filterbank(FeatureSettings(scale="mel"))
    assert inverted.shape == (128, 513)
    assert inverted.dtype == np.float32
    np.testing.assert_array_equal(inverted[::-1, ::-1], plain)
    np.testing.assert_array_equal(
        plain, librosa.filters.mel(sr=16000, n_fft=1024, n_mels=128, fmin=0, fmax=8000)
    )
    widths = (inverted > 0).sum(axis=1)
    assert widths[-1] < 5 < 20 < widths[0]
    assert (np.diff(inverted.argmax(axis=1)) >= 0).all()
    with pytest.raises(ValueError, match="read-only"):
        inverted[0, 0] = 1


@pytest.mark.parametrize("scale", ["mel", "inverted"])
@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
@pytest.mark.parametrize("samples", [16000, 160000, 33333])
def test_log_mel_agrees_with_librosa(settings, scale, samples):
    settings = FeatureSettings(**{**settings.as_dict(), "scale": scale})
    audio = noise(samples, seed=samples)
    ours = log_mel(audio, settings)
    assert ours.dtype == np.float32
    assert ours.shape == (settings.frames(samples), settings.n_mels)
    # Both sides transform in float32; a filter's output is good to about 1e-5 of itself where the
    # frame's loudest bin is not more than 60 dB above, so to 1e-3 dB.
    np.testing.assert_allclose(
        ours, librosa_db(audio, settings, scale == "inverted"), rtol=0, atol=1e-3
    )


def test_a_ten_second_clip_has_313_frames():
    assert log_mel(noise(160000)).shape == (313, 128)
    assert FeatureSettings().frames(160000) == 313


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


def test_silence_is_the_floor_everywhere():
    floor = 10 * np.log10(FeatureSettings().floor)
    np.testing.assert_allclose(log_mel(np.zeros(4096)), floor, rtol=1e-6)


def test_an_impulse_lands_in_the_frames_whose_window_covers_it():
    audio = np.zeros(16000, np.float32)
    audio[512 * 10] = 1
    loud = np.flatnonzero(log_mel(audio).max(axis=1) > -100)
    # The window is zero at its first sample, so frames 9 to 11 less those it only touches.
    np.testing.assert_array_equal(loud, [10])
    audio[512 * 10 + 100] = 1
    loud = np.flatnonzero(log_mel(audio).max(axis=1) > -100)
    np.testing.assert_array_equal(loud, [10, 11])


@pytest.mark.parametrize(
    ("audio", "words"),
    [
        (np.zeros((2, 4096)), r"found \[2, 4096\]"),
        (np.zeros(1023), "at least one window of 1024 samples, found 1023"),
        (np.zeros(0), "found 0"),
        (np.r_[np.zeros(2000), np.nan, np.zeros(2000)], "not finite"),
        (np.r_[np.zeros(2000), np.inf, np.zeros(2000)], "not finite"),
        (np.full(4096, 1e30), "too large"),
    ],
)
def test_audio_that_cannot_be_used(audio, words):
    with pytest.raises(ValueError, match=words):
        log_mel(audio)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"scale": "bark"}, "scale='bark': expected one of 'inverted', 'mel'"),
        ({"n_mels": 0}, r"n_mels=0: expected a number in \[1, 4096\]"),
        ({"hop_length": 2.5}, "hop_length=2.5: expected int, found float"),
        ({"n_fft": 1023}, "n_fft must be even"),
        ({"hop_length": 2048}, "at least hop_length"),
        ({"fmax": 9000.0}, "at most 8000 Hz"),
        ({"fmin": 500.0, "fmax": 400.0}, "fmin must be below fmax"),
        ({"power": 0.0}, "power=0.0: expected"),
        ({"floor": 0.0}, "floor=0.0: expected"),
    ],
)
def test_settings_that_make_no_sense(wrong, words):
    with pytest.raises(ValueError, match=words):
        FeatureSettings(**wrong)


def test_filters_narrower_than_a_bin_are_an_error():
    with pytest.raises(ValueError, match="of 128 mel filters are narrower than a bin"):
        filterbank(FeatureSettings(n_fft=256, hop_length=128))


def write(path, audio, rate=16000, subtype="PCM_16", **more):
    soundfile.write(path, audio, rate, subtype=subtype, **more)
    return path


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "PCM_U8"])
def test_every_coding_reads_as_soundfile_reads_it(tmp_path, subtype):
    path = write(tmp_path / "a.wav", noise(5000), subtype=subtype)
    audio, notes = read_audio(path)
    assert audio.dtype == np.float32
    assert notes == ()
    np.testing.assert_array_equal(audio, soundfile.read(path, dtype="float32")[0])


def test_flac_full_scale_and_odd_lengths(tmp_path):
    audio = np.array([-1, 1 - 2**-15, 0, 2**-15, 0.5] * 401)
    for name in ("a.wav", "a.flac"):
        read, _ = read_audio(write(tmp_path / name, audio))
        np.testing.assert_array_equal(read, audio.astype(np.float32))


def test_channel_0_is_taken_and_said(tmp_path):
    audio = np.stack([noise(4000, seed) for seed in range(8)], axis=1)
    path = write(tmp_path / "a.wav", audio, format="WAVEX")
    read, notes = read_audio(path)
    assert notes == ("8 channels, channel 0 taken",)
    np.testing.assert_array_equal(read, soundfile.read(path, dtype="float32")[0][:, 0])
    assert decode(path)[1].channels == 8


# librosa.load imports a module of the standard library that is on its way out.
@pytest.mark.filterwarnings("ignore:.*slated for removal:DeprecationWarning")
@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_other_rates_are_resampled_as_librosa_does_and_said(tmp_path, rate):
    path = write(tmp_path / "a.wav", noise(rate + 77), rate)
    read, notes = read_audio(path)
    assert notes == (f"{rate} Hz, resampled to 16000 Hz",)
    np.testing.assert_array_equal(read, librosa.load(path, sr=16000)[0])
    assert len(read) == decode(path)[1].samples_at(16000)
    features, _ = file_features(path)
    assert len(features) == FeatureSettings().frames(len(read))


def damage(path, kind):
    data = path.read_bytes()
    if kind == "empty file":
        path.write_bytes(b"")
    elif kind == "cut in the middle":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "cut in the header":
        path.write_bytes(data[:20])
    elif kind == "text":
        path.write_text("not audio at all\n" * 100)
    elif kind == "missing":
        path.unlink()


@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("empty file", "0 bytes that do not decode"),
        ("cut in the middle", "truncated"),
        ("cut in the header", "do not decode"),
        ("text", "do not decode"),
        ("missing", "no readable file"),
    ],
)
def test_damaged_files_are_named_with_what_to_do(tmp_path, suffix, kind, words):
    path = write(tmp_path / f"a.{suffix}", noise(16000))
    damage(path, kind)
    for reader in (decode, read_audio, file_features):
        with pytest.raises(DataError, match=words) as caught:
            reader(path)
        assert caught.value.file == str(path)
        assert caught.value.remedy


def test_a_wav_with_other_chunks_is_whole_and_its_cut_copy_is_not(tmp_path):
    whole = write(tmp_path / "a.wav", noise(3000)).read_bytes()
    extra = b"LIST" + (300).to_bytes(4, "little") + bytes(300) + b"odd " + b"\3\0\0\0abc\0"
    path = tmp_path / "b.wav"
    path.write_bytes(whole[:36] + extra + whole[36:] + b"tail\4\0\0\0abcd")
    np.testing.assert_array_equal(read_audio(path)[0], read_audio(tmp_path / "a.wav")[0])
    path.write_bytes(whole[:36] + extra + whole[36:-2])
    with pytest.raises(DataError, match="5998 bytes of audio; expected 6000"):
        read_audio(path)
    # A writer that streams cannot know the size and says so with the largest number.
    path.write_bytes(whole[:40] + b"\xff\xff\xff\xff" + whole[44:])
    assert len(read_audio(path)[0]) == 3000


def test_no_samples_short_clips_and_values_that_are_not_finite(tmp_path):
    empty = write(tmp_path / "empty.wav", np.zeros(0))
    for reader in (decode, read_audio):
        with pytest.raises(DataError, match="no samples"):
            reader(empty)
    short = write(tmp_path / "short.wav", np.zeros(1000))
    assert len(read_audio(short)[0]) == 1000
    with pytest.raises(DataError, match="1000 samples at 16000 Hz; expected at least one window"):
        file_features(short)
    bad = noise(4000)
    bad[7] = np.nan
    with pytest.raises(DataError, match="not finite"):
        read_audio(write(tmp_path / "nan.wav", bad, subtype="FLOAT"))


def test_a_decoder_that_stops_early_in_silence_is_noticed(tmp_path, monkeypatch):
    path = write(tmp_path / "a.wav", noise(4000))
    read = soundfile.SoundFile.read
    # Some versions of libsndfile give what they could decode of a damaged file, without an error.
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *a, **k: read(*a, **k)[:-1])
    with pytest.raises(DataError, match="3999 samples; expected 4000 samples"):
        read_audio(path)


def test_filters_shared_between_processes_spare_librosa():
    code = (
        "import sys, numpy as np\n"
        "from asdproto.features import FeatureSettings, log_mel, share_filterbank\n"
        "s = FeatureSettings(n_mels=4)\n"
        "share_filterbank(s, np.ones((4, 513)))\n"
        "assert log_mel(np.ones(4096), s).shape == (9, 4)\n"
        "sys.exit(','.join({'librosa', 'numba', 'scipy.signal'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_real_recording_goes_through(real_data):
    files = [
        *sorted((real_data / "dcase2023_clips").rglob("*.wav")),
        *sorted((real_data / "mimii_fan_id_00").rglob("*.flac")),
        *sorted((real_data / "mimii_fan_id_00").rglob("*.wav")),
    ]
    assert len(files) == 28 + 40 + 2
    plain = FeatureSettings(scale="mel")
    for number, file in enumerate(files):
        audio, notes = read_audio(file)
        assert notes == (("8 channels, channel 0 taken",) if "eight" in str(file) else ())
        info = decode(file)[1]
        assert info.samples == len(audio)
        features, _ = file_features(file)
        assert features.shape == (1 + len(audio) // 512, 128)
        assert -157 < features.min() < features.max() < 60
        if number % 7 == 0:  # librosa is slow
            # Some machines are 90 dB louder at the bottom than at the top of the band, where a
            # float32 transform is then good to 0.01 dB; float16 steps by 0.06 dB there. librosa
            # gets float64, so that the deviation is ours alone.
            audio = audio.astype(np.float64)
            np.testing.assert_allclose(
                log_mel(audio, plain), librosa_db(audio, plain), rtol=0, atol=0.02
            )
            np.testing.assert_allclose(
                features, librosa_db(audio, FeatureSettings(), True), rtol=0, atol=0.02
            )
