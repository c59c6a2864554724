"""One channel of a recording, whole or refused; what is said of it."""

import librosa
import numpy as np
import pytest
import soundfile

from asdproto.audio import decode, read_audio
from asdproto.audio_info import AudioInfo, audio_statistics, compare_with_training, describe_samples
from asdproto.errors import DataError


def noise(samples, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def write(path, audio, rate=16000, subtype="PCM_16", **more):
    soundfile.write(path, audio, rate, subtype=subtype, **more)
    return path


def test_the_first_channel_that_is_not_dead_is_taken_and_said(tmp_path):
    audio = np.stack([noise(4000, seed) for seed in range(8)], axis=1)
    path = write(tmp_path / "a.wav", audio, format="WAVEX")
    read, info = read_audio(path)
    assert (read.dtype, info.notes(16000)) == (np.float32, ["8 channels, channel 0 taken"])
    np.testing.assert_array_equal(read, soundfile.read(path, dtype="float32")[0][:, 0])
    audio[:, 0] *= 1e-4
    audio[:, 1] = 0.3  # a constant voltage is no sound either
    read, info = read_audio(write(tmp_path / "a.wav", audio))
    assert info.notes(16000) == ["channel 0 silent, channel 2 taken"]
    np.testing.assert_allclose(read, audio[:, 2], atol=1e-4)


# librosa.load imports a module of the standard library that is on its way out.
@pytest.mark.filterwarnings("ignore:.*slated for removal:DeprecationWarning")
def test_other_rates_are_resampled_as_librosa_does_and_said(tmp_path):
    path = write(tmp_path / "a.wav", noise(44177), 44100)
    read, info = read_audio(path)
    assert info.notes(16000) == ["44100 Hz, resampled to 16000 Hz"]
    np.testing.assert_array_equal(read, librosa.load(path, sr=16000)[0])
    assert len(read) == info.samples_at(16000)


def test_what_is_odd_about_samples_is_said():
    def said(samples):
        return describe_samples(samples.astype(np.float32), 16000).faults()

    assert said(noise(1000)) == []
    assert said(1e-4 * noise(1000)) == ["nearly silent, -100 dB re full scale"]
    assert said(3000 * noise(1000) / np.abs(noise(1000)).max()) == [
        "samples up to 3e+03 times full scale"
    ]
    clipped = np.clip(10 * noise(1000), -1, 1)
    share = np.mean(np.abs(clipped) == 1)
    assert said(clipped) == [f"{100 * share:.2g} % of the samples clipped"]
    tone = np.sin(np.arange(16000) * 0.5)  # touches full scale and is not cut there
    assert said(0.98 * tone) == []
    samples = noise(4096)
    info = describe_samples(samples, 16000)
    power = np.mean(samples.astype(np.float64) ** 2)
    assert info.level == pytest.approx(10 * np.log10(power), abs=1e-4)  # float32 sums
    assert info.peak == np.abs(samples).max()


def test_a_recording_unlike_those_of_training_is_said_so():
    silence = AudioInfo(16000, 9, level=-200, is_constant=True)
    known = [AudioInfo(16000, 9, level=-40), AudioInfo(16000, 9, level=-30), silence]
    for info, notes in (
        (AudioInfo(16000, 9, level=-48), []),
        (AudioInfo(8000, 9, level=-35), ["8000 Hz where training has 16000"]),
        (AudioInfo(16000, 9, channels=2, level=-35), ["2 channels where training has 1"]),
        (AudioInfo(16000, 9, level=-55), ["level -55 dB where training has -40 to -30 dB"]),
        (AudioInfo(16000, 9, level=-30, clipped=0.02), ["2 % of the samples clipped"]),
        (silence, ["one value throughout"]),
    ):
        assert compare_with_training(info, audio_statistics(known)) == notes
        # Without statistics its own faults are said.
        assert compare_with_training(info, {}) == info.faults()
    # Clipping is not said where training recordings clip.
    clipped = AudioInfo(16000, 9, level=-3, clipped=0.02)
    assert compare_with_training(clipped, audio_statistics([clipped])) == []


def test_a_decoder_that_stops_early_in_silence_is_noticed(tmp_path, monkeypatch):
    path = write(tmp_path / "a.wav", noise(4000))
    read = soundfile.SoundFile.read
    # Some versions of libsndfile give what they could decode of a damaged file, without an error.
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *a, **k: read(*a, **k)[:-1])
    with pytest.raises(DataError, match="3999 samples; expected 4000 samples"):
        read_audio(path)


def test_sizes_that_writers_leave_in_a_wav_header(tmp_path):
    """Of samples and of all: what a stream cannot know, or the first counted wrongly."""
    content = write(tmp_path / "a.wav", noise(3000)).read_bytes()
    size, whole = slice(40, 44), slice(4, 8)
    for samples, of_all, said in (
        (0, 36, ""),
        (0x7FFFF000, 0, ""),
        (0xFFFFFFFF, 6036, ""),
        (6004, 6036, ""),
        (6004, 6040, "6000 bytes of audio; expected 6004 bytes"),
    ):
        changed = bytearray(content)
        changed[size], changed[whole] = samples.to_bytes(4, "little"), of_all.to_bytes(4, "little")
        (tmp_path / "b.wav").write_bytes(changed)
        if said:
            with pytest.raises(DataError, match=said):
                decode(tmp_path / "b.wav")
        else:
            assert len(decode(tmp_path / "b.wav")[0]) == 3000


def test_a_wav_with_other_chunks_is_whole_and_its_cut_copy_is_not(tmp_path):
    whole = write(tmp_path / "a.wav", noise(3000)).read_bytes()
    extra = b"LIST" + (300).to_bytes(4, "little") + bytes(300) + b"odd " + b"\3\0\0\0abc\0"
    path = tmp_path / "b.wav"
    path.write_bytes(whole[:36] + extra + whole[36:] + b"tail\4\0\0\0abcd")
    np.testing.assert_array_equal(read_audio(path)[0], read_audio(tmp_path / "a.wav")[0])
    size = (len(whole) + len(extra) - 8).to_bytes(4, "little")
    path.write_bytes(whole[:4] + size + whole[8:36] + extra + whole[36:-2])
    with pytest.raises(DataError, match="5998 bytes of audio; expected 6000"):
        read_audio(path)
    # No samples, and a chunk after them, are no stream.
    path.write_bytes(whole[:40] + bytes(4) + b"LIST\4\0\0\0abcd")
    with pytest.raises(DataError, match="no samples"):
        read_audio(path)
    # RF64 says its size elsewhere.
    write(path, noise(3000), format="RF64")
    assert len(decode(path)[0]) == 3000
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match="5000 bytes of audio; expected 6000"):
        decode(path)


def test_flac_of_unknown_length(tmp_path):
    path = write(tmp_path / "a.flac", noise(5000))
    expected = decode(path)[0]
    content = path.read_bytes()
    path.write_bytes(content[:21] + bytes([content[21] & 0xF0]) + bytes(4) + content[26:])
    audio, info = decode(path)
    np.testing.assert_array_equal(audio, expected)
    assert info.samples == 5000
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(DataError, match="decoding ends early"):
        decode(path)
