"""Pointcept's SpUNet-v1m1 out of spconv's own modules: the peer that makes checkpoints and logits for test_spunet.

Written from the layout of its checkpoints and the order of its layers; imports spconv, which need not be installed.
"""

from collections import OrderedDict
from functools import partial

import spconv.pytorch as spconv
import torch
from torch import nn

norm = partial(nn.BatchNorm1d, eps=1e-3, momentum=0.01)


class Block(spconv.SparseModule):
    def __init__(self, in_channels, channels, key):
        super().__init__()
        if in_channels == channels:
            self.proj = spconv.SparseSequential(nn.Identity())
        else:
            self.proj = spconv.SparseSequential(spconv.SubMConv3d(in_channels, channels, kernel_size=1, bias=False), norm(channels))
        self.conv1 = spconv.SubMConv3d(in_channels, channels, kernel_size=3, stride=1, padding=1, bias=False, indice_key=key)
        self.bn1 = norm(channels)
        self.conv2 = spconv.SubMConv3d(channels, channels, kernel_size=3, stride=1, padding=1, bias=False, indice_key=key)
        self.bn2 = norm(channels)

    def forward(self, x):
        shortcut = self.proj(x)
        out = self.conv1(x)
        out = out.replace_feature(torch.relu(self.bn1(out.features)))
        out = self.conv2(out)
        return out.replace_feature(torch.relu(self.bn2(out.features) + shortcut.features))


def stage(in_channels, channels, count, key):
    blocks = [(f"block{i}", Block(in_channels if i == 0 else channels, channels, key)) for i in range(count)]
    return spconv.SparseSequential(OrderedDict(blocks))


class PeerSpUNet(nn.Module):
    def __init__(self, in_channels, num_classes, base=32, channels=(32, 64, 128, 256, 256, 128, 96, 96), layers=(2, 3, 4, 6, 2, 2, 2, 2)):
        super().__init__()
        stem = spconv.SubMConv3d(in_channels, base, kernel_size=5, padding=1, bias=False, indice_key="stem")
        self.conv_input = spconv.SparseSequential(stem, norm(base), nn.ReLU())
        self.down, self.up, self.enc, self.dec = (nn.ModuleList() for _ in range(4))
        depth, finer, back = len(layers) // 2, base, channels[-1]
        for s in range(depth):
            conv = spconv.SparseConv3d(finer, channels[s], kernel_size=2, stride=2, bias=False, indice_key=f"spconv{s + 1}")
            self.down.append(spconv.SparseSequential(conv, norm(channels[s]), nn.ReLU()))
            self.enc.append(stage(channels[s], channels[s], layers[s], f"subm{s + 1}"))
            conv = spconv.SparseInverseConv3d(channels[len(channels) - s - 2], back, kernel_size=2, bias=False, indice_key=f"spconv{s + 1}")
            self.up.append(spconv.SparseSequential(conv, norm(back), nn.ReLU()))
            self.dec.append(stage(back + finer, back, layers[len(channels) - s - 1], f"subm{s}"))
            finer, back = channels[s], channels[len(channels) - s - 2]
        self.final = spconv.SubMConv3d(channels[-1], num_classes, kernel_size=1, padding=1, bias=True)

    def forward(self, grid_coord, feat, batch):
        indices = torch.cat([batch[:, None], grid_coord], dim=1).int().contiguous()
        shape = (grid_coord.max(0).values + 96).tolist()
        x = self.conv_input(spconv.SparseConvTensor(feat, indices, shape, int(batch[-1]) + 1))
        skips = [x]
        for down, enc in zip(self.down, self.enc, strict=True):
            x = enc(down(x))
            skips.append(x)
        x = skips.pop()
        for up, dec in zip(reversed(self.up), reversed(self.dec), strict=True):
            x = up(x)
            x = dec(x.replace_feature(torch.cat([x.features, skips.pop().features], dim=1)))
        return self.final(x).features
