"""What a generated kernel must know about the device that it runs on."""

from __future__ import annotations

import torch

from segmo.errors import KernelError

INTERPRETED_WORKERS = 8  # enough to see tiles split in a small test


def interpreted() -> bool:
    """Kernels run in Triton's interpreter, on CPU tensors (``TRITON_INTERPRET=1``)."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def architecture(device: torch.device) -> str:
    """Target name of a device, such as ``"sm_90"`` or ``"gfx942"``.

    Under Triton's interpreter the CPU stands in for ``"sm_80"``.

    Raises:
        KernelError: generated kernels cannot run on this device.
    """
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        if torch.version.hip is not None:
            return str(properties.gcnArchName).split(":")[0]
        return f"sm_{properties.major}{properties.minor}"
    if device.type == "cpu" and interpreted():
        return "sm_80"
    raise KernelError(
        f"generated kernels need a CUDA or ROCm device, the tensors are on {device}; use "
        "lowering='flash', or set TRITON_INTERPRET=1 before Triton is imported to run them on the CPU, slowly"
    )


def workers(device: torch.device) -> int:
    """Programs of an attention kernel that the device runs at a time: about two per multiprocessor."""
    if device.type == "cuda":
        return 2 * int(torch.cuda.get_device_properties(device).multi_processor_count)
    return INTERPRETED_WORKERS
