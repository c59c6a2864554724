"""Scores recordings with an exported detector. Needs what ``pip install jax flatbuffers`` brings.

    python score.py recording.wav ...        # beside model.jax, arrays.npz and about.json

or, in a program: ``Exported(folder).score(samples)``, samples at the detector's sample rate.
"""

import json
import sys
import wave
from pathlib import Path

import numpy as np
from jax import export
from scipy import fft


class Exported:
    """An exported detector.

    Args:
      folder: What ``python -m asdproto export`` wrote.
    """

    def __init__(self, folder):
        folder = Path(folder)
        self.about = json.loads((folder / "about.json").read_text())
        with np.load(folder / "arrays.npz") as arrays:
            self.window, self.filters = arrays["window"], arrays["filters"]
        self.call = export.deserialize(bytearray((folder / "model.jax").read_bytes())).call

    def features(self, samples):
        """Log-mel spectrogram in dB, ``[frames, mels]``, of samples in [-1, 1]."""
        settings = self.about["features"]
        padded = np.pad(np.asarray(samples, np.float32), settings["n_fft"] // 2)
        frames = np.lib.stride_tricks.sliding_window_view(padded, settings["n_fft"])
        spectrum = fft.rfft(frames[:: settings["hop_length"]] * self.window)
        power = (spectrum.real**2 + spectrum.imag**2) ** np.float32(settings["power"] / 2)
        mel = 10 * np.log10(np.maximum(power @ self.filters.T, np.float32(settings["floor"])))
        # Rounded as the features were that the detector was trained on.
        return mel.astype(self.about["dtype"]).astype(np.float32)

    def windows(self, features):
        """The windows of a clip whose embeddings are averaged, ``[windows, frames, mels]``."""
        crop, hop = self.about["crop"], self.about["hop"]
        features = np.take(features, np.arange(max(crop, len(features))) % len(features), axis=0)
        if self.about["full_clip"]:
            return features[None]
        count = -(-(len(features) - crop) // hop) + 1
        starts = np.round(np.linspace(0, len(features) - crop, count)).astype(int)
        return np.stack([features[start : start + crop] for start in starts])

    def score(self, samples, machine_type=None, section=None):
        """Score, threshold and decision of one clip; higher scores are more anomalous."""
        known = self.about["sections"]
        fits = [key for key in known if (machine_type or key[0], section or key[1]) == tuple(key)]
        if len(fits) != 1:
            raise ValueError(f"say which machine type and section it is: {known}")
        windows = self.windows(self.features(samples))[None]
        score, nearest = self.call(windows, np.array([known.index(fits[0])], np.int32))
        score, threshold = float(score[0]), self.about["thresholds"][fits[0][0]]
        name = self.about["classes"][int(nearest[0])]
        return {
            "score": score,
            "threshold": threshold,
            "decision": int(score > threshold),
            "nearest_class": name,
        }


if __name__ == "__main__":
    detector = Exported(Path(__file__).parent)
    rate = detector.about["features"]["sample_rate"]
    for path in sys.argv[1:]:
        with wave.open(path) as file:
            if (file.getframerate(), file.getsampwidth()) != (rate, 2):
                sys.exit(f"{path}: expected a 16-bit wav file of {rate} Hz; convert it first")
            data = np.frombuffer(file.readframes(file.getnframes()), np.int16)
            data = data[:: file.getnchannels()]
        print(path, json.dumps(detector.score(data / np.float32(32768))))
