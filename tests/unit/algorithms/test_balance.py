import pytest
import torch

from framework.algorithms.balance import auxiliary_losses, bias_update, load_imbalance, sequence_balance_loss


def test_bias_update_is_the_sign_of_the_distance_to_the_mean() -> None:
    load_LE = torch.tensor([[10, 0, 5, 5], [1, 1, 1, 1]])
    expected = torch.tensor([[-0.001, 0.001, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(bias_update(load_LE, 0.001), expected)
    torch.testing.assert_close(bias_update(load_LE[0], 0.001), expected[0])


def test_bias_update_moves_towards_balance() -> None:
    """A gate with a strong preference, routed by score + bias, comes to use its experts evenly."""
    scores_TE = torch.rand(512, 8, generator=torch.Generator().manual_seed(0)) + torch.linspace(0, 1, 8)
    bias_E = torch.zeros(8)
    loads = []
    for _ in range(200):
        load_E = torch.bincount((scores_TE + bias_E).topk(2).indices.flatten(), minlength=8)
        loads.append(float(load_imbalance(load_E)))
        bias_E += bias_update(load_E, 0.01)
    assert loads[0] > 2.5
    assert loads[-1] < 1.2


def test_load_imbalance() -> None:
    load_LE = torch.tensor([[2, 2, 2, 2], [8, 0, 0, 0], [0, 0, 0, 0]])
    assert load_imbalance(load_LE).tolist() == [1.0, 4.0, 0.0]


def test_sequence_balance_loss_hand_worked() -> None:
    # 2 experts, top-1. First sequence: both tokens choose expert 0, shares 3/4 and 1/4 of it: f = (2, 0), P_0 = 1/2.
    # Second: one token, chooses expert 1, share 3/4: f = (0, 2).
    scores_TE = torch.tensor([[0.6, 0.2], [0.1, 0.3], [0.2, 0.6]])
    experts_TK = torch.tensor([[0], [0], [1]])
    loss_S = sequence_balance_loss(scores_TE, experts_TK, torch.tensor([2, 1]))
    torch.testing.assert_close(loss_S, torch.tensor([1.0, 1.5]))


def test_sequence_balance_loss_follows_the_paper_term_by_term() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths, n_experts, top_k = [5, 1, 8], 6, 2
    scores_TE = torch.randn(14, n_experts, generator=generator, dtype=torch.float64).sigmoid().requires_grad_()
    experts_TK = scores_TE.detach().topk(top_k).indices
    expected, start = [], 0
    for length in lengths:
        total = torch.zeros((), dtype=torch.float64)
        for i in range(n_experts):
            tokens = range(start, start + length)
            chosen = sum(1 for t in tokens if i in experts_TK[t].tolist())
            frequency = n_experts / (top_k * length) * chosen  # eq. 18
            share = sum(scores_TE[t, i] / scores_TE[t].sum() for t in tokens) / length  # eq. 19-20
            total = total + frequency * share  # eq. 17
        expected.append(total)
        start += length
    loss_S = sequence_balance_loss(scores_TE, experts_TK, torch.tensor(lengths))
    torch.testing.assert_close(loss_S, torch.stack(expected))
    (ours,) = torch.autograd.grad(loss_S.sum(), scores_TE)
    (theirs,) = torch.autograd.grad(torch.stack(expected).sum(), scores_TE)
    torch.testing.assert_close(ours, theirs)


def test_auxiliary_losses_hand_worked() -> None:
    # 4 experts on 2 devices, top-2, M = 2, two tokens: one chooses experts 0 and 1 (device 0 only), one 1 and 2.
    scores_TE = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.1, 0.4, 0.4, 0.1]], requires_grad=True)
    losses = auxiliary_losses(scores_TE, torch.tensor([[0, 1], [1, 2]]), torch.tensor([2]), n_devices=2, max_devices=2)
    # f = 4/(2*2) * (1, 2, 1, 0); P = (.3, .35, .25, .1)
    torch.testing.assert_close(losses.expert_S.item(), 0.3 + 0.7 + 0.25, rtol=1e-6, atol=0.0)
    # per device: f' = (1.5, 0.5), P' = (.65, .35)
    torch.testing.assert_close(losses.device_S.item(), 1.5 * 0.65 + 0.5 * 0.35, rtol=1e-6, atol=0.0)
    # tokens sent: (2, 1); f'' = 2/(2*2) * (2, 1) = (1, .5)
    torch.testing.assert_close(losses.communication_S.item(), 0.65 + 0.5 * 0.35, rtol=1e-6, atol=0.0)
    losses.communication_S.sum().backward()
    torch.testing.assert_close(scores_TE.grad, torch.tensor([[0.5, 0.5, 0.25, 0.25]] * 2))


def test_auxiliary_losses_follow_the_paper_term_by_term() -> None:
    """DeepSeek-V2 eq. 23-31 in float64 with V2's D = 8 devices and M = 3."""
    generator = torch.Generator().manual_seed(1)
    lengths, n_experts, top_k, n_devices, max_devices = [7, 12], 16, 6, 8, 3
    logits_TE = torch.randn(19, n_experts, generator=generator, dtype=torch.float64).requires_grad_()
    groups_TD = logits_TE.detach().view(19, n_devices, 2).amax(-1).topk(max_devices).indices
    allowed_TD = torch.zeros(19, n_devices).scatter(1, groups_TD, 1.0)
    experts_TK = logits_TE.detach().masked_fill(allowed_TD.repeat_interleave(2, 1) == 0, -torch.inf).topk(top_k).indices

    def paper(scores_TE: torch.Tensor) -> list[list[torch.Tensor]]:
        found, start = [], 0
        for length in lengths:
            tokens = range(start, start + length)
            f, p = [], []
            for i in range(n_experts):
                chosen = sum(i in experts_TK[t].tolist() for t in tokens)
                f.append(n_experts / (top_k * length) * chosen)  # eq. 24
                p.append(torch.stack([scores_TE[t, i] for t in tokens]).sum() / length)  # eq. 25
            expert = sum((f_i * p_i for f_i, p_i in zip(f, p, strict=True)), torch.zeros(()))  # eq. 23
            device, communication = torch.zeros(()), torch.zeros(())
            for d in range(n_devices):
                members = [2 * d, 2 * d + 1]
                mean_p = p[members[0]] + p[members[1]]  # eq. 28 and 31
                device = device + sum(f[i] for i in members) / 2 * mean_p  # eq. 26-27
                sent = sum(any(i in experts_TK[t].tolist() for i in members) for t in tokens)
                communication = communication + n_devices / (max_devices * length) * sent * mean_p  # eq. 29-30
            found.append([expert, device, communication])
            start += length
        return found

    scores_TE = logits_TE.softmax(-1)
    losses = auxiliary_losses(scores_TE, experts_TK, torch.tensor(lengths), n_devices, max_devices)
    ours = torch.stack([losses.expert_S, losses.device_S, losses.communication_S], -1)
    expected = torch.stack([torch.stack(row) for row in paper(scores_TE)])
    torch.testing.assert_close(ours, expected)
    weights = torch.tensor([0.003, 0.05, 0.02], dtype=torch.float64)
    (found,) = torch.autograd.grad((ours * weights).sum(), logits_TE, retain_graph=True)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), logits_TE)
    torch.testing.assert_close(found, wanted)
    # With softmax affinities V2's expert-level loss is V3's sequence-wise one.
    torch.testing.assert_close(losses.expert_S, sequence_balance_loss(scores_TE, experts_TK, torch.tensor(lengths)))


def test_experts_must_divide_over_devices() -> None:
    with pytest.raises(ValueError, match="3 devices"):
        auxiliary_losses(torch.ones(1, 4), torch.tensor([[0]]), torch.tensor([1]), n_devices=3, max_devices=1)
