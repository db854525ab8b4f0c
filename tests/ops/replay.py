"""Every call of our ops that a test makes on the CPU, made again on another device and compared.

`POINTCEPT3M_REPLAY=cuda pytest tests/ops` thus tests each CUDA kernel with all the inputs that the tests of the ops
think of, hostile ones included: what the CPU refuses, CUDA must refuse.
"""

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

TOLERANCES = {  # relative to the largest value of the result
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 5e-3,
    torch.bfloat16: 4e-2,
}
# Pairs and ranks that lie are not followed on CUDA, but end the process, as torch's own indexing does there.
ENDS_THE_PROCESS = ("sparse_conv", "sparse_conv_grad_weight", "sparse_pool_sum", "sparse_pool_mean", "sparse_pool_max")
# A Gaussian whose opacity at a pixel is 1/255 to the last bit is drawn by one device and not by the other.
ALLOWED_APART = {"rasterize_to_pixels": 2e-3, "rasterize_to_pixels_backward": 1e-2}


class Replay(TorchDispatchMode):
    """Compares results of `pointcept3m` ops on the CPU with those on `device`; `checked` counts the calls by op."""

    def __init__(self, device: str):
        super().__init__()
        self.device = device
        self.checked: dict[str, int] = {}

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        ours = op.namespace == "pointcept3m" and all(t.device.type == "cpu" for t in tensors)
        if not ours or any(isinstance(t, FakeTensor) or t.is_meta for t in tensors):
            return op(*args, **kwargs)
        name = op._schema.name.split("::")[1]
        declared = op._schema.arguments
        named = zip((argument.name for argument in declared), args, strict=False)
        there = tuple(self._moved(k, v) for k, v in named), {k: self._moved(k, v) for k, v in kwargs.items()}
        try:
            expected = op(*args, **kwargs)
        except Exception as refusal:
            if name not in ENDS_THE_PROCESS:
                self._must_refuse(op, name, there, refusal)
            raise
        got = op(*there[0], **there[1])
        self.checked[name] = self.checked.get(name, 0) + 1
        results = (tree_flatten(values)[0] for values in (got, expected) if expected is not None)
        for place, (mine, theirs) in enumerate(zip(*results, strict=True)):
            self._compare(f"{name}, result {place}", name, mine.cpu(), theirs)
        for argument, mine, theirs in zip(declared, there[0], args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._compare(f"{name}, {argument.name} afterwards", name, mine.cpu(), theirs)
        return expected

    def _must_refuse(self, op, name: str, there: tuple, refusal: Exception) -> None:
        """A kernel that crashes, or runs out of memory, has not refused."""
        try:
            op(*there[0], **there[1])
            if self.device == "cuda":
                torch.cuda.synchronize()
        except type(refusal) as error:
            crashed = any(word in str(error).lower() for word in ("cuda error", "cudaerror", "out of memory"))
            assert not crashed, f"{name}: the CPU refuses ({refusal}), {self.device} crashes: {error}"
        else:
            raise AssertionError(f"{name}: {self.device} accepts what the CPU refuses: {refusal}")

    def _moved(self, name: str, value: object) -> object:
        """The argument on the device; the edges of a rulebook's offsets stay on the CPU, where they always are."""
        return value if name == "start" else tree_map_only(torch.Tensor, lambda t: t.to(self.device), value)

    def _compare(self, where: str, name: str, got: torch.Tensor, expected: torch.Tensor) -> None:
        assert got.shape == expected.shape and got.dtype == expected.dtype, f"{where}: {got.shape}, {got.dtype}"
        if expected.numel() == 0:
            return
        if expected.is_floating_point():
            finite = expected[expected.isfinite()]
            scale = finite.abs().max().clamp(min=1e-6).item() if finite.numel() else 1.0
            limit = TOLERANCES[expected.dtype] * scale
            apart = ~torch.isclose(got.double(), expected.double(), rtol=0, atol=limit, equal_nan=True)
        else:
            apart = got != expected
        share = apart.double().mean().item()
        assert share <= ALLOWED_APART.get(name, 0), (
            f"{where}: {share:.2%} of {expected.numel()} values differ, the first at "
            f"{apart.nonzero()[0].tolist()}: {got[apart][0].item()} on {self.device}, {expected[apart][0].item()} on the CPU"
        )
