"""Training on labels alone."""

import torch

from dlunet.methods import Progress, Step, Supervised


def test_the_only_term_is_the_loss_on_the_labelled_patch():
    network = torch.nn.Conv3d(1, 2, 1)
    image, label = torch.randn(1, 1, 2, 3, 4), torch.randint(0, 2, (1, 2, 3, 4))
    method, loss = Supervised(), torch.nn.CrossEntropyLoss()
    assert list(method.networks) == ["a"] and not method.needs_unlabelled
    assert list(method.streams_in(0)) == list(method.streams_in(999)) == ["labelled"]
    batch = {"labelled": {"weak": image, "label": label}}
    step = Step({"a": network}, batch, loss, None, Progress(0, 0, 0.0), torch.Generator())
    terms = method.losses(step)
    assert terms.keys() == {"a"} and terms["a"].keys() == {"labelled"}
    torch.testing.assert_close(terms["a"]["labelled"], loss(network(image), label))
