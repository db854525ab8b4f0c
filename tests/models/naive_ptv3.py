"""Point Transformer V3 for one scene, written out with dictionaries and loops, as a twin for the tests.

It takes the state dict of a PT-v3m1 and follows Pointcept's description: scalar codes, patches as lists of points.
"""

import math

import torch

from tests.structures.test_serialization import expected


class Naive:
    """`Naive(model, **config)(grid_coord, feat)` is what the model in eval mode should return for that scene."""

    def __init__(self, model, order, stride, enc_depths, enc_num_head, enc_patch_size, dec_depths=(), dec_num_head=(),
                 dec_patch_size=(), pre_norm=True, **_):  # fmt: skip
        self.state = {name: value.double() for name, value in model.state_dict().items()}
        self.curves, self.stride, self.pre_norm = order, stride, pre_norm
        self.enc = list(zip(enc_depths, enc_num_head, enc_patch_size, strict=True))
        self.dec = list(zip(dec_depths, dec_num_head, dec_patch_size, strict=True))

    def __call__(self, grid_coord, feat):
        cells = [tuple(c) for c in grid_coord.tolist()]
        depth = (max(max(c) for c in cells) + 1).bit_length()
        codes = [[expected(curve, *c, depth) for c in cells] for curve in self.curves]
        x = self.gelu(self.bn(self.conv(feat.double(), cells, "embedding.stem.conv", 5), "embedding.stem.norm"))
        passed = []
        for s, (blocks, heads, patch) in enumerate(self.enc):
            if s:
                finer, fine_cells, fine_codes = x, cells, codes
                x, cells, codes, inverse, depth = self.pool(x, cells, codes, depth, s)
                passed.append((finer, fine_cells, fine_codes, inverse))
            for i in range(blocks):
                x = self.block(x, cells, codes[i % len(codes)], f"enc.enc{s}.block{i}", heads, patch)
        for s, (blocks, heads, patch) in reversed(list(enumerate(self.dec))):
            finer, cells, codes, inverse = passed.pop()
            up = f"dec.dec{s}.up"
            coarse = self.gelu(self.bn(self.linear(x, f"{up}.proj.0"), f"{up}.proj.1"))
            fine = self.gelu(self.bn(self.linear(finer, f"{up}.proj_skip.0"), f"{up}.proj_skip.1"))
            x = torch.stack([row + coarse[cell] for row, cell in zip(fine, inverse, strict=True)])
            for i in range(blocks):
                x = self.block(x, cells, codes[i % len(codes)], f"dec.dec{s}.block{i}", heads, patch)
        return x

    def pool(self, x, cells, codes, depth, s):
        bits = int(math.log2(self.stride[s - 1]))
        bits = bits if depth >= bits else 0
        x = self.linear(x, f"enc.enc{s}.down.proj")
        members = {}
        for row, code in enumerate(codes[0]):
            members.setdefault(code >> 3 * bits, []).append(row)
        groups = [members[code] for code in sorted(members)]
        inverse = [None] * len(x)
        for number, rows in enumerate(groups):
            for row in rows:
                inverse[row] = number
        x = torch.stack([x[rows].max(0)[0] for rows in groups])
        x = self.gelu(self.bn(x, f"enc.enc{s}.down.norm.0"))
        cells = [tuple(v >> bits for v in cells[rows[0]]) for rows in groups]
        codes = [[code[rows[0]] >> 3 * bits for rows in groups] for code in codes]
        return x, cells, codes, inverse, depth - bits

    def block(self, x, cells, code, name, heads, patch):
        cpe = self.linear(self.conv(x, cells, f"{name}.cpe.0", 3), f"{name}.cpe.1")
        x = x + self.ln(cpe, f"{name}.cpe.2")
        first, second = (lambda v, n=n: self.ln(v, f"{name}.norm{n}.0") for n in (1, 2))
        if self.pre_norm:
            x = x + self.attention(first(x), cells, code, f"{name}.attn", heads, patch)
            return x + self.mlp(second(x), f"{name}.mlp.0")
        x = first(x + self.attention(x, cells, code, f"{name}.attn", heads, patch))
        return second(x + self.mlp(x, f"{name}.mlp.0"))

    def attention(self, x, cells, code, name, heads, patch):
        sequence = sorted(range(len(x)), key=lambda row: code[row])
        count = len(sequence)
        own = min(patch, count)
        if count > patch:
            sequence += [sequence[i - patch] for i in range(count, -(-count // patch) * patch)]
        query, key, value = self.linear(x, f"{name}.qkv").chunk(3, 1)
        width = x.size(1) // heads
        out = torch.zeros_like(x)
        for begin in range(0, count, own):
            rows = sequence[begin : begin + own]
            for head in range(heads):
                part = slice(head * width, head * width + width)
                score = query[rows, part] @ key[rows, part].T / width**0.5
                score = score + self.bias(cells, rows, f"{name}.rpe.rpe_table", head)
                mixed = score.exp() / score.exp().sum(1, keepdim=True) @ value[rows, part]
                for slot, row in enumerate(rows):
                    if begin + slot < count:  # the others are borrowed
                        out[row, part] = mixed[slot]
        return self.linear(out, f"{name}.proj")

    def bias(self, cells, rows, name, head):
        if name not in self.state:
            return 0
        table = self.state[name]
        size = len(table) // 3
        bound = size // 2
        return torch.tensor(
            [
                [
                    sum(
                        float(
                            table[axis * size + bound + max(-bound, min(bound, cells[a][axis] - cells[b][axis])), head]
                        )
                        for axis in range(3)
                    )
                    for b in rows
                ]
                for a in rows
            ],
            dtype=torch.float64,
        )

    def mlp(self, x, name):
        return self.linear(self.gelu(self.linear(x, f"{name}.fc1")), f"{name}.fc2")

    def linear(self, x, name):
        return x @ self.state[f"{name}.weight"].T + self.state.get(f"{name}.bias", 0)

    def gelu(self, x):
        return x * (1 + torch.erf(x / 2**0.5)) / 2

    def bn(self, x, name):
        part = {key: self.state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")}
        return (x - part["running_mean"]) / (part["running_var"] + 1e-3).sqrt() * part["weight"] + part["bias"]

    def ln(self, x, name):
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def conv(self, x, cells, name, size):
        weight, bias = self.state[f"{name}.weight"], self.state.get(f"{name}.bias", 0)
        rows = {}
        for row, cell in enumerate(cells):
            rows.setdefault(cell, []).append(row)
        held = {cell: x[members].mean(0) for cell, members in rows.items()}
        steps = [(i, j, k) for i in range(size) for j in range(size) for k in range(size)]
        out = []
        for cell in cells:
            total = torch.zeros(weight.size(0), dtype=torch.float64)
            for step in steps:
                near = tuple(c + d - size // 2 for c, d in zip(cell, step, strict=True))
                if near in held:
                    total = total + weight[:, step[0], step[1], step[2]] @ held[near]
            out.append(total + bias)
        return torch.stack(out)
