"""Scores recordings with an exported detector. Needs what ``pip install jax flatbuffers`` brings.

    python score.py [--machine-type NAME] [--section NN] recording.wav ...

beside model.jax, arrays.npz and about.json; or, in a program: ``Exported(folder).score(samples)``,
samples at the detector's sample rate.
"""

import argparse
import json
import sys
import wave
import zlib
from pathlib import Path

import numpy as np
from jax import export
from scipy import fft


class Exported:
    """An exported detector.

    Args:
      folder: What ``python -m asdproto export`` wrote.

    Raises:
      ValueError: A file is missing, damaged, or of another export.
    """

    def __init__(self, folder):
        folder = Path(folder)
        try:
            self.about = json.loads((folder / "about.json").read_text())
            own = self.about.pop("checksum")
            if own != zlib.crc32(json.dumps(self.about, sort_keys=True).encode()):
                raise ValueError("about.json was changed")
            content = {name: (folder / name).read_bytes() for name in self.about["checksums"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder}: found no whole export ({error!r}); export again") from None
        for name, crc32 in self.about["checksums"].items():
            if zlib.crc32(content[name]) != crc32:
                raise ValueError(f"{folder / name}: found another export's; export again")
        with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
            self.window, self.filters = arrays["window"], arrays["filters"]
        self.call = export.deserialize(bytearray(content["model.jax"])).call

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
        count = -(-(len(features) - crop) // hop) + 1
        starts = np.round(np.linspace(0, len(features) - crop, count)).astype(int)
        return np.stack([features[start : start + crop] for start in starts])

    def score(self, samples, machine_type=None, section=None):
        """Score, threshold and decision of one clip; higher scores are more anomalous.

        Args:
          samples: Floating, full scale 1, finite, shape ``[samples]``, at least one window.
          machine_type: Where the detector knows several.
          section: Likewise.

        Raises:
          ValueError: Samples that are something else, or several sections that fit.
        """
        samples, least = np.asarray(samples), self.about["features"]["n_fft"]
        if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
            kind = f"shape {list(samples.shape)} and dtype {samples.dtype}"
            raise ValueError(f"found {kind}; expected floating samples [samples] of full scale 1")
        if len(samples) < least or not np.abs(samples).max() < 2.0**32:  # also where it is nan
            found = f"{len(samples)} samples" if len(samples) < least else "samples out of range"
            raise ValueError(f"found {found}; expected at least {least} finite ones")
        known = self.about["sections"]
        fits = [key for key in known if (machine_type or key[0], section or key[1]) == tuple(key)]
        if len(fits) != 1:
            expected = ", ".join(" ".join(key) for key in known)
            raise ValueError(f"say which machine type and section it is: {expected}")
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


def read(path, rate):
    """Samples of the first channel of a 16-bit wav file, float32."""
    try:
        if not Path(path).is_file():  # a pipe would be waited for
            raise OSError("no file")
        with wave.open(str(path)) as file:
            if (file.getframerate(), file.getsampwidth()) != (rate, 2):
                found = f"{file.getframerate()} Hz and {8 * file.getsampwidth()} bits"
                raise ValueError(f"found {found}; expected 16 bits and {rate} Hz, convert it first")
            content = file.readframes(file.getnframes())
            if len(content) < 2 * file.getnframes() * file.getnchannels():
                raise EOFError
            data = np.frombuffer(content, np.int16)
            return data[:: file.getnchannels()] / np.float32(32768)
    except (OSError, EOFError, wave.Error) as error:
        raise ValueError(f"found no 16-bit wav file ({str(error) or 'it is cut'})") from None


def main():
    """Prints a row of json for each recording; 1 where one cannot be scored."""
    parser = argparse.ArgumentParser(description="Scores recordings with an exported detector.")
    parser.add_argument("paths", nargs="+", metavar="recording.wav")
    parser.add_argument("--machine-type", metavar="NAME", help="where it knows several")
    parser.add_argument("--section", metavar="NN", help="where it knows several")
    arguments = parser.parse_args()
    try:
        detector = Exported(Path(__file__).parent)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    failed = 0
    for path in arguments.paths:
        try:
            samples = read(path, detector.about["features"]["sample_rate"])
            row = detector.score(samples, arguments.machine_type, arguments.section)
            print(json.dumps({"file": path, **row}))
        except ValueError as error:
            print(f"error: {path!a}: {error}", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
