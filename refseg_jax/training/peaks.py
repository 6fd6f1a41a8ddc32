"""What accelerators can do at best: arithmetic, memory traffic and memory, and the times that follow."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Peak:
    """Published limits of a kind of device, as JAX counts devices.

    Attributes:
        name: short name, as in `v5e:4x4`.
        kinds: JAX's names of the kind.
        flops: products of bf16 matrices (dense), in FLOP/s.
        bandwidth: of the device's memory, in bytes/s.
        memory: of the device, in bytes.
        source: where the figures were read.
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    bandwidth: float
    memory: float
    source: str

    def seconds(self, flops: float, traffic: float) -> tuple[float, float]:
        """Seconds that `flops` and `traffic` (bytes) take at least: of arithmetic, and of memory."""
        return flops / self.flops, traffic / self.bandwidth


def _peak(
    name: str, kinds: tuple[str, ...], teraflops: float, gigabytes: float, gib: float, source: str
) -> Peak:
    return Peak(name, kinds, teraflops * 1e12, gigabytes * 1e9, gib * 2**30, source)


_TPU = "https://docs.cloud.google.com/tpu/docs/"
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"

#: The figures of TPUs are those of a chip. A chip of TPU7x is two devices, which have half of them each;
#: the two cores of a v4 or v5p chip are one device. GPUs are the SXM forms, without sparsity.
PEAKS = (
    _peak("v4", ("TPU v4",), 275, 1200, 32, f"{_TPU}v4"),
    _peak("v5e", ("TPU v5 lite", "TPU v5e"), 197, 819, 16, f"{_TPU}v5e"),
    _peak("v5p", ("TPU v5", "TPU v5p"), 459, 2765, 95, f"{_TPU}v5p"),
    _peak("v6e", ("TPU v6 lite", "TPU v6e"), 918, 1638, 32, f"{_TPU}tpu7x"),
    _peak("tpu7x", ("TPU7x",), 2307 / 2, 7380 / 2, 192 / 2, f"{_TPU}tpu7x"),
    _peak(
        "A100-40GB",
        ("NVIDIA A100-SXM4-40GB",),
        *(312, 1555, 40),
        f"{_NVIDIA}a100",
    ),
    _peak(
        "A100-80GB",
        ("NVIDIA A100-SXM4-80GB",),
        *(312, 2039, 80),
        f"{_NVIDIA}a100",
    ),
    _peak("H100", ("NVIDIA H100 80GB HBM3",), 989.5, 3350, 80, f"{_NVIDIA}h100"),
    _peak("H200", ("NVIDIA H200",), 989.5, 4800, 141, f"{_NVIDIA}h200"),
)

_BY_KIND = {kind: peak for peak in PEAKS for kind in peak.kinds}


def peak_of(kind: str) -> Peak | None:
    """The limits of a kind of device as JAX names it; `None` for a kind that is not in the table."""
    return _BY_KIND.get(kind)
