import pytest

from experiments.rivals import adacos, dgmix, disentangled, mobilenet, stgram
from tests.experiments.rivals import tiny

BLOCKS = {
    adacos.AdaCosSystem: {"stages": (1,)},
    disentangled.DisentangledSystem: {"stages": (1,)},
    mobilenet.MobileNetSystem: {"stages": ((2, 16, 1, 2),), "head": 16},
    dgmix.DGMixSystem: {"stages": ((2, 16, 1, 2),), "head": 16},
    stgram.STgramSystem: {"stages": ((1, 16, 1, 2),), "head": 16, "n_mels": tiny.FEATURES.n_mels},
}


@pytest.fixture(scope="module")
def small_networks():
    """Compiling networks of many blocks is most of what a run of two epochs does."""
    with pytest.MonkeyPatch.context() as patch:
        for kind, changes in BLOCKS.items():

            def encoder(self, build=kind.encoder, changes=changes):
                return build(self).clone(**changes)

            patch.setattr(kind, "encoder", encoder)
        yield
