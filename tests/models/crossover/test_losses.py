"""Eq. 5 against loops, what is left out, and what several processes make of it."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.functional import normalize

from pointcept3m.models.crossover.losses import ContrastiveLoss, contrastive


def rows(count, seed, dim=6, dtype=torch.float32):
    return normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=1)


def by_loops(query, key, known, scale, absent="drop", group=None):
    """Both directions of Eq. 5, one entry and one negative at a time."""
    total, count = 0.0, 0
    for i in range(len(query)):
        if not known[i]:
            continue
        count += 1
        for q, k in ((query, key), (key, query)):
            denominator = 0.0
            for j in range(len(query)):
                if (absent == "drop" and not known[j]) or (group is not None and group[i] != group[j]):
                    continue
                denominator += math.exp(scale * float(q[i] @ k[j]))
            total += math.log(denominator) - scale * float(q[i] @ k[i])
    return total / count


@pytest.mark.parametrize("absent", ["drop", "negative"])
@pytest.mark.parametrize("grouped", [False, True])
def test_the_loss_is_that_of_equation_5(absent, grouped):
    query, key = rows(9, 0), rows(9, 1)
    known = torch.tensor([1, 1, 0, 1, 1, 0, 1, 1, 1]).bool()
    group = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2]) if grouped else None
    loss = contrastive(query, key, known, torch.tensor(7.0), absent=absent, group=group)
    assert float(loss) == pytest.approx(by_loops(query, key, known, 7.0, absent, group), rel=1e-5)


def test_missing_entries_take_no_part_at_all():
    query, key, known = rows(8, 0), rows(8, 1), torch.tensor([1, 0, 1, 1, 0, 1, 1, 1]).bool()
    whole = contrastive(query, key, known, torch.tensor(5.0))
    assert torch.equal(whole, contrastive(query[known], key[known], known[known], torch.tensor(5.0)))
    # the release's way changes with what stands in the missing rows
    other = torch.where(known[:, None], key, -key)
    assert float(contrastive(query, other, known, torch.tensor(5.0), absent="negative")) != pytest.approx(float(
        contrastive(query, key, known, torch.tensor(5.0), absent="negative")), rel=1e-6)  # fmt: skip
    assert torch.equal(whole, contrastive(query, other, known, torch.tensor(5.0)))


def test_nothing_to_align_is_a_loss_of_zero_with_gradients():
    query = rows(3, 0).requires_grad_()
    loss = contrastive(query, rows(3, 1), torch.zeros(3, dtype=torch.bool), torch.tensor(5.0))
    loss.backward()
    assert float(loss.detach()) == 0 and torch.equal(query.grad, torch.zeros(3, 6))
    empty = contrastive(rows(0, 0), rows(0, 1), torch.zeros(0, dtype=torch.bool), torch.tensor(5.0))
    assert float(empty) == 0


def test_the_temperature_is_learned_unless_told_otherwise():
    learned, fixed = ContrastiveLoss(), ContrastiveLoss(learn_temperature=False)
    assert learned.scale.item() == pytest.approx(1 / 0.07) and [name for name, _ in learned.named_parameters()] == ["log_scale"]
    assert not list(fixed.parameters())
    optimizer = torch.optim.SGD(learned.parameters(), 0.1)
    learned(rows(8, 0), rows(8, 1), torch.ones(8, dtype=torch.bool)).backward()
    optimizer.step()
    assert learned.scale.item() != pytest.approx(1 / 0.07)
    with torch.no_grad():
        learned.log_scale.fill_(10.0)
    assert learned.scale.item() == pytest.approx(100)


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="negatives 'scenes' is unknown; did you mean 'scene'"):
        ContrastiveLoss(negatives="scenes")
    with pytest.raises(ValueError, match="temperature must be above 0.01"):
        ContrastiveLoss(temperature=0)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("absent", ["drop", "negative"])
def test_gradients_are_those_of_finite_differences(symmetric, absent):
    query, key = rows(5, 0, dtype=torch.float64).requires_grad_(), rows(5, 1, dtype=torch.float64).requires_grad_()
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    known, group = torch.tensor([1, 1, 0, 1, 1]).bool(), torch.tensor([0, 0, 0, 0, 1])
    for each in (None, group):
        assert torch.autograd.gradcheck(lambda q, k, s, each=each: contrastive(q, k, known, s, symmetric, absent, each), (query, key, scale))


def _process(rank, path, counts, results):
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=len(counts))
    weight = torch.eye(6).requires_grad_()
    ends = [0, *torch.tensor(counts).cumsum(0).tolist()]
    part = slice(ends[rank], ends[rank + 1])
    query, key, known = rows(ends[-1], 0)[part], rows(ends[-1], 1)[part], _known(ends[-1])[part]
    loss = contrastive(normalize(query @ weight, dim=1), normalize(key @ weight, dim=1), known, torch.tensor(6.0))
    loss.backward()
    results[rank] = (float(loss.detach()), weight.grad.clone())
    dist.barrier()
    dist.destroy_process_group()


def _known(count):
    return torch.rand(count, generator=torch.Generator().manual_seed(5)) > 0.3


@pytest.mark.parametrize("counts", [[5, 4], [7, 0]])
def test_processes_together_are_one_with_the_whole_batch(tmp_path, counts):
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_process, (tmp_path / "meet", counts, results), nprocs=len(counts))
        losses, gradients = zip(*(results[rank] for rank in range(len(counts))), strict=True)
    weight = torch.eye(6).requires_grad_()
    total = sum(counts)
    alone = contrastive(
        normalize(rows(total, 0) @ weight, dim=1), normalize(rows(total, 1) @ weight, dim=1), _known(total), torch.tensor(6.0)
    )
    alone.backward()
    assert sum(losses) / len(losses) == pytest.approx(float(alone.detach()), rel=1e-5)
    assert torch.allclose(sum(gradients) / len(gradients), weight.grad, atol=1e-6)
