"""The MobileNetV4 towers against timm's own, where timm is installed: in an environment of its own, as it needs another
torch (`pip install torch==2.14.1 torchvision==0.29.1 timm`)."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmcompress.compress.train.mobilenetv4 import STAGES, mobilenetv4
from mmcompress.convnames import COUNTER, conv_entries
from mmcompress.convtower import ConvTower
from mmcompress.tensorentry import read_entries

timm = pytest.importorskip("timm")
NAMES = {"conv-s": "conv_small", "conv-m": "conv_medium", "conv-l": "conv_large", "hybrid-m": "hybrid_medium"}


@pytest.mark.parametrize("variant", STAGES)
def test_presets_equal_timm(variant: str) -> None:
    torch.manual_seed(0)
    reference = timm.create_model(f"mobilenetv4_{NAMES[variant]}", num_classes=0).eval()
    with torch.no_grad():
        for name, tensor in (*reference.named_parameters(), *reference.named_buffers()):
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.ndim == 1:
                tensor.add_(0.2 * torch.randn_like(tensor))
    tensors = {name: t for name, t in reference.state_dict().items() if not name.endswith(COUNTER)}
    config = mobilenetv4(variant, 224)
    entries = [*conv_entries(config)]
    assert {name for entry in entries for name in entry.theirs} == {*tensors}
    tower = ConvTower(config, 16).eval()
    tower.load_state_dict(read_entries(entries, tensors, "timm"), strict=False)
    features: list[torch.Tensor] = []
    tower.projection.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    pixels = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        tower(pixels)
        expected = reference(pixels)
    assert (features[0] - expected).abs().max() <= 1e-5 * expected.abs().max()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        reference(pixels[:1])
    assert config.macs(16) == counter.get_total_flops() // 2 + 16 * config.head
    assert config.params(16) == sum(p.numel() for p in reference.parameters()) + 16 * config.head
