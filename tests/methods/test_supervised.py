"""Training on labels alone."""

import pytest
import torch

from dlunet.methods import Supervised


def test_the_only_term_is_the_loss_on_the_labelled_patch():
    network = torch.nn.Conv3d(1, 2, 1)
    batch = {"image": torch.randn(1, 1, 2, 3, 4), "label": torch.randint(0, 2, (1, 2, 3, 4))}
    method, loss = Supervised(), torch.nn.CrossEntropyLoss()
    assert method.num_networks == 1
    assert not method.uses_unlabelled(0)
    assert not method.uses_unlabelled(999)
    (terms,) = method.losses([network], batch, loss, epoch=0)
    assert terms.keys() == {"labelled_a"}
    torch.testing.assert_close(terms["labelled_a"], loss(network(batch["image"]), batch["label"]))


def test_two_networks_are_refused():
    with pytest.raises(ValueError, match="unpack"):
        Supervised().losses([torch.nn.Identity()] * 2, {}, torch.nn.MSELoss(), epoch=0)
