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
    losses = auxiliary_losses(scores_TE, torch.tensor([[0, 1], [1, 2]]), n_devices=2, max_devices=2)
    # f = 4/(2*2) * (1, 2, 1, 0); P = (.3, .35, .25, .1)
    torch.testing.assert_close(losses.expert.item(), 0.3 + 0.7 + 0.25, rtol=1e-6, atol=0.0)
    # per device: f' = (1.5, 0.5), P' = (.65, .35)
    torch.testing.assert_close(losses.device.item(), 1.5 * 0.65 + 0.5 * 0.35, rtol=1e-6, atol=0.0)
    # tokens sent: (2, 1); f'' = 2/(2*2) * (2, 1) = (1, .5)
    torch.testing.assert_close(losses.communication.item(), 0.65 + 0.5 * 0.35, rtol=1e-6, atol=0.0)
    losses.communication.backward()
    torch.testing.assert_close(scores_TE.grad, torch.tensor([[0.5, 0.5, 0.25, 0.25]] * 2))


def test_experts_must_divide_over_devices() -> None:
    with pytest.raises(ValueError, match="3 devices"):
        auxiliary_losses(torch.ones(1, 4), torch.tensor([[0]]), n_devices=3, max_devices=1)
