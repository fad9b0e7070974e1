"""Walks of several threads: one after the other, so that each puts back what it found."""

import threading

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from initwell.trace.recorder import record


def test_a_model_walked_by_two_threads_keeps_its_weights_and_the_generators_their_state() -> None:
    running, others = threading.Semaphore(0), list[bool]()

    class Meeting(nn.Module):
        """The first forward waits for a second one to begin, but not for ever."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            if not others:
                others.append(False)
                others[0] = running.acquire(timeout=1.0)
            running.release()
            return torch.sigmoid(self.layer(x))

    model = Meeting()
    weight, state, one_hot = model.layer.weight.detach().clone(), torch.get_rng_state(), F.one_hot
    threads = [threading.Thread(target=record, args=(model, torch.zeros(2, 3))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert others == [False]
    assert not model.layer.weight.is_meta and torch.equal(model.layer.weight, weight)
    assert torch.equal(torch.get_rng_state(), state)
    assert F.one_hot is one_hot
