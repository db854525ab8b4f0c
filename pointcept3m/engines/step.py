"""One training step in its parts: forward under autocast, backward, update."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

AMP_DTYPES = {"float16": torch.float16, "fp16": torch.float16, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16}


class NonFiniteError(FloatingPointError):
    """A loss or a gradient is NaN or inf; raised before the update, so weights and checkpoints are untouched."""


class Precision:
    """Mixed precision as a config asks for it: the autocast context and, for float16, the gradient scaler.

    float16 asked for on a CPU, as Pointcept's configs do everywhere, computes in float32, and `note` says so: float16
    kernels are missing there or slower, and float32 loses nothing.
    """

    def __init__(self, enabled: bool, dtype: str, device: torch.device):
        if enabled and dtype not in AMP_DTYPES:
            raise ValueError(f"amp_dtype must be one of {', '.join(AMP_DTYPES)}, got {dtype!r}")
        self.note = ""
        if enabled and device.type == "cpu" and AMP_DTYPES[dtype] == torch.float16:
            enabled = False
            self.note = "enable_amp: amp_dtype='float16' needs a GPU; on this CPU the run computes in float32 (amp_dtype='bfloat16' works here too)"
        self.enabled, self.device = enabled, device
        self.dtype = AMP_DTYPES[dtype] if enabled else torch.float32
        self.scaler = torch.amp.GradScaler(device.type) if enabled and self.dtype == torch.float16 else None

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Float operations inside run in the chosen type where torch says it is safe."""
        with torch.autocast(self.device.type, dtype=self.dtype if self.enabled else None, enabled=self.enabled):
            yield


def explained(error: Exception) -> Exception:
    """`error`, or for what torch says of a batch norm without two values to compare, a sentence about scenes."""
    if "Expected more than 1 value per channel" not in str(error):
        return error
    sentence = ValueError(
        "model: a batch norm was given a single voxel, of which there is no variance: the scenes of this batch are too small "
        "together; take them out of the data, or raise batch_size so that they stand beside others"
    )
    sentence.__cause__ = error
    return sentence


def scalars_of(output: Mapping[str, Any]) -> dict[str, float]:
    """The single numbers among a model's outputs, as floats."""
    tensors = {name: value for name, value in output.items() if isinstance(value, Tensor) and value.numel() == 1}
    if not tensors:
        return {}
    # One copy from the device for all of them, since each copy waits for it.
    values = torch.stack([value.detach().reshape(()).double() for value in tensors.values()]).tolist()
    return dict(zip(tensors, values, strict=True))


def check_output(output: Any) -> None:
    """Raises TypeError or KeyError where a training forward did not return a dict with a scalar `loss`."""
    if not isinstance(output, Mapping):
        raise TypeError(f"model: wanted a dict with 'loss', got {type(output).__name__}")
    if "loss" not in output:
        raise KeyError(f"model: wanted 'loss' among its outputs, got {sorted(output)}")
    loss = output["loss"]
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise TypeError(f"model: 'loss' must be a tensor with one element, got {getattr(loss, 'shape', type(loss).__name__)}")


def backward(loss: Tensor, accumulation: int, scaler: torch.amp.GradScaler | None) -> None:
    """Adds the gradients of `loss / accumulation` to those that are there."""
    loss = loss / accumulation
    (scaler.scale(loss) if scaler else loss).backward()


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    scaler: torch.amp.GradScaler | None,
    clip_grad: float | None,
    where: str,
) -> float:
    """Clips, steps the optimizer and the schedule, and clears the gradients. Returns the norm of the gradient.

    With a scaler, an overflow skips optimizer and schedule and lowers the scale; without one it is an error.
    Raises: NonFiniteError that names the first parameter whose gradient is not finite.
    """
    if scaler:
        scaler.unscale_(optimizer)
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = gradient_norm(parameters)
    if not scaler and not torch.isfinite(norm):
        raise NonFiniteError(f"{where}: the gradient is not finite ({float(norm)}), first in parameter {_first_bad_gradient(model)}")
    if clip_grad is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_grad, norm)
    if scaler:
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        stepped = scaler.get_scale() >= scale
    else:
        optimizer.step()
        stepped = True
    if stepped and scheduler is not None:
        scheduler.step()
    optimizer.zero_grad(set_to_none=True)
    return float(norm)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The Euclidean norm over all gradients, float32."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    return torch.nn.utils.get_total_norm(gradients)


def _first_bad_gradient(model: nn.Module) -> str:
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return name
    return "none (the norm itself overflows)"
