"""The pre-training step in PyTorch: the rival of ``experiments/benchmarks/train.py``.

The same ResNet18 with time-frequency attention pooling, layer by layer and under the same names,
so that our parameters can be copied in; the same loss (Eq. 3), momentum and weight decay. It is
given its best: channels-last, crops gathered, standardized and on the device beforehand, fused
SGD, cuDNN's own search. bfloat16 means autocast with float32 parameters and batch statistics, as
ours; float32 on a GPU means TF32 products on both sides.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax.traverse_util import flatten_dict
from torch import nn

from asdproto.training.state import Batch, TrainState
from asdproto.training.step import train_step
from asdproto.training.task import Task

EMBEDDING_TOLERANCE = 1e-4  # float32, unit embeddings: sums of up to 4,608 terms in another order
UPDATE_TOLERANCE = 1e-2  # of its length; 18 normalizations of a batch magnify rounding


class AttentionPooling(nn.Module):
    """Time-frequency attention pooling of ``[batch, channels, time, frequency]``."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(1, channels // 4)
        for axis in ("time", "frequency"):
            self.add_module(f"{axis}_hidden", nn.Linear(channels, hidden))
            self.add_module(f"{axis}_logit", nn.Linear(hidden, 1, bias=False))

    def weights(self, axis: str, summary: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.get_submodule(f"{axis}_hidden")(summary))
        logits = self.get_submodule(f"{axis}_logit")(hidden)[..., 0]
        return torch.softmax(logits.float(), dim=-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time = self.weights("time", x.mean(3, dtype=torch.float32).transpose(1, 2))
        frequency = self.weights("frequency", x.mean(2, dtype=torch.float32).transpose(1, 2))
        both = (time[:, :, None] * frequency[:, None, :]).flatten(1)
        return torch.einsum("bp,bcp->bc", both, x.flatten(2))


class ResNet(nn.Module):
    """The encoder: ``[batch, 1, frames, mels]`` to unit embeddings."""

    def __init__(self, width: int, stages: tuple[int, ...]):
        super().__init__()
        self.blocks: list[str] = []
        self._conv("stem", 1, width, 7, 2)
        channels = width
        for stage, blocks in enumerate(stages):
            for block in range(blocks):
                name = f"stage{stage + 1}_block{block + 1}"
                features, stride = width * 2**stage, 2 if stage > 0 and block == 0 else 1
                self._conv(f"{name}_conv1", channels, features, 3, stride, f"{name}_norm1")
                self._conv(f"{name}_conv2", features, features, 3, 1, f"{name}_norm2")
                if stride > 1 or channels != features:
                    self._conv(f"{name}_project", channels, features, 1, stride)
                self.blocks.append(name)
                channels = features
        self.pool = AttentionPooling(channels)

    def _conv(
        self, name: str, channels: int, features: int, size: int, stride: int, norm: str = ""
    ) -> None:
        self.add_module(name, nn.Conv2d(channels, features, size, stride, size // 2, bias=False))
        self.add_module(norm or f"{name}_norm", nn.BatchNorm2d(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layers: Any = self._modules
        x = F.relu(layers["stem_norm"](layers["stem"](x)))
        x = F.max_pool2d(x, 3, 2, 1)
        for name in self.blocks:
            y = F.relu(layers[f"{name}_norm1"](layers[f"{name}_conv1"](x)))
            y = layers[f"{name}_norm2"](layers[f"{name}_conv2"](y))
            if f"{name}_project" in layers:
                x = layers[f"{name}_project_norm"](layers[f"{name}_project"](x))
            x = F.relu(y + x)
        return F.normalize(self.pool(x).float(), dim=-1)


def from_flax(encoder: Mapping[str, Any], batch_stats: Mapping[str, Any]) -> dict[str, Any]:
    """Our parameters and statistics under PyTorch's names and in its layout."""
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    tensors: dict[str, Any] = {}
    for path, value in (*flatten_dict(encoder).items(), *flatten_dict(batch_stats).items()):
        *module, name = path
        array = np.array(value, np.float32)
        if name == "kernel":  # [rows, columns, in, out], or [in, out]
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        key = ".".join((*module, names.get(name, "weight")))
        tensors[key] = torch.from_numpy(np.ascontiguousarray(array))
    return tensors


def expanded_loss(
    embeddings: torch.Tensor, prototypes: torch.Tensor, labels: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Eq. 3, mean over the batch; ``prototypes`` is ``[classes, per_class, dim]``."""
    scores = embeddings @ prototypes.flatten(0, 1).T / temperature
    rows = torch.arange(len(labels), device=labels.device)
    own = scores.unflatten(1, prototypes.shape[:2])[rows, labels]
    return (torch.logsumexp(scores, 1) - own.mean(1)).mean()


class Rival:
    """A training of the PyTorch network that starts where ours stands; arrays are the host's.

    ``torch.compile`` gets it where ``compiled``; on a GPU with CUDA graphs.
    """

    def __init__(
        self, task: Task, state: TrainState, batch: Batch, *, dtype: str, compiled: bool = False
    ):
        gpu = jax.default_backend() == "gpu"
        if gpu and not torch.cuda.is_available():
            raise RuntimeError("jax runs on a GPU, but this PyTorch has no CUDA")
        self.device = torch.device("cuda" if gpu else "cpu")
        model: Any = task.model
        self.model = ResNet(model.width, model.stages)
        # num_batches_tracked alone has no counterpart.
        missing = self.model.load_state_dict(
            from_flax(state.params["encoder"], state.batch_stats), strict=False
        )
        strange = [name for name in missing.missing_keys if "num_batches" not in name]
        if strange or missing.unexpected_keys:
            raise ValueError(f"networks differ in {strange + list(missing.unexpected_keys)}")
        self.model = self.model.to(self.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        torch.backends.cudnn.benchmark = True
        stage = task.stage
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=float(stage.learning_rate(0)),
            momentum=stage.momentum,
            weight_decay=stage.weight_decay,
            fused=True,
        )
        images = torch.from_numpy(np.array(batch.crops))[:, None].to(self.device)
        self.crops = images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.from_numpy(np.array(batch.labels, np.int64)).to(self.device)
        self.prototypes = torch.from_numpy(np.array(state.prototypes)).to(self.device)
        self.temperature, self.dtype = float(stage.hyper().temperature), dtype
        self.graphs = compiled and gpu
        self.loss: Callable[[torch.Tensor], torch.Tensor] = self._loss
        if compiled:
            self.loss = torch.compile(self._loss, mode="max-autotune" if gpu else "default")

    def _loss(self, crops: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
            embeddings = self.model(crops)
        return expanded_loss(embeddings, self.prototypes, self.labels, self.temperature)

    def step(self) -> torch.Tensor:
        """One update."""
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.crops)
        loss.backward()
        self.optimizer.step()
        return loss

    def run(self, count: int) -> None:
        """Some updates, waited for."""
        for _ in range(count):
            self.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def compare(task: Task, state: TrainState, batch: Batch) -> dict[str, float]:
    """Checks in float32 that both sides do the same: embeddings, loss and one update.

    Returns:
      Largest difference of an embedding's component, relative differences of the loss and of the
      update.

    Raises:
      RuntimeError: They differ; what would be timed is not the same.
    """

    @jax.jit
    def ours(state: TrainState, batch: Batch) -> Any:
        variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
        embeddings, _ = task.model.apply(
            variables, batch.crops, train=True, mutable=["batch_stats"]
        )
        after, loss = train_step(task, state, batch, jax.random.key(0), task.stage.hyper())
        return embeddings, loss, after.params["encoder"]

    tf32 = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    with jax.default_matmul_precision("highest"):
        embeddings, loss, params = jax.device_get(ours(state, batch))
    host = jax.device_get(state._replace(step=jnp.int32(0)))
    rival = Rival(task, host, jax.device_get(batch), dtype="float32")
    with torch.no_grad():
        theirs = rival.model(rival.crops).cpu().numpy()
    before, wanted = from_flax(host.params["encoder"], {}), from_flax(params, {})
    their_loss = float(rival.step().detach())
    updated = dict(rival.model.named_parameters())
    torch.backends.cudnn.allow_tf32 = tf32[0]
    torch.set_float32_matmul_precision(tf32[1])
    length = sum(float((wanted[name] - before[name]).square().sum()) for name in before)
    error = sum(
        float((updated[name].detach().cpu() - wanted[name]).square().sum()) for name in wanted
    )
    result = {
        "embeddings": float(np.abs(theirs - embeddings).max()),
        "loss": abs(their_loss - float(loss)) / abs(float(loss)),
        "update": (error / max(length, 1e-30)) ** 0.5,
    }
    agree = result["embeddings"] <= EMBEDDING_TOLERANCE and result["update"] <= UPDATE_TOLERANCE
    if not agree:
        raise RuntimeError(
            f"the PyTorch network differs from ours: {result}; expected embeddings within "
            f"{EMBEDDING_TOLERANCE} and updates within {UPDATE_TOLERANCE}"
        )
    return {name: float(f"{value:.2g}") for name, value in result.items()}


def rivals(
    task: Task, state: TrainState, batch: Batch, *, dtype: str, names: Sequence[str]
) -> tuple[dict[str, Rival], dict[str, str]]:
    """Rivals that are warm, by name; and why some of those after the first are not."""
    torch.set_float32_matmul_precision("high")  # TF32, as XLA's default; a CPU has none
    made, failed = {}, {}
    for name in names:
        try:
            rival = Rival(task, state, batch, dtype=dtype, compiled=name == "compiled")
            rival.run(5)  # compiles, searches, warms up and records the graphs
            made[name] = rival
        except Exception as error:  # a compiler that is missing must not cost the other figures
            if name == names[0]:
                raise
            failed[name] = f"{type(error).__name__}: {str(error)[:300]}"
    return made, failed
