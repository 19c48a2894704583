"""``reduction="keras"`` against what Keras computes, written out in numpy, and its gradients.

The formulas are those of keras 3: ``losses.binary_crossentropy`` and ``mean_squared_error`` (a mean
over the last axis, then over the batch), ``Dense`` with ``activity_regularizer`` L1 or L2 (a sum
over all outputs, divided by the batch size: since keras#22021, before which Keras 3 did not divide),
and the sigmoid's clip to [1e-7, 1 - 1e-7].
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsevae_ext.data import CSRBatch
from sparsevae_ext.models import SparseAutoencoder

N, H, B = 19, 7, 5
EPSILON = 1e-7  # keras.config.epsilon()


def sigmoid(a):
    return 1.0 / (1.0 + np.exp(-a))


def binary_crossentropy(y_true, y_pred):
    y_pred = np.clip(y_pred, EPSILON, 1.0 - EPSILON)
    return -np.mean(y_true * np.log(y_pred) + (1.0 - y_true) * np.log(1.0 - y_pred), axis=-1).mean()


def mean_squared_error(y_true, y_pred):
    return np.mean(np.square(y_true - y_pred), axis=-1).mean()


def categorical_crossentropy(y_true, y_pred):
    y_pred = y_pred / y_pred.sum(axis=-1, keepdims=True)
    return -np.sum(y_true * np.log(np.clip(y_pred, EPSILON, 1.0 - EPSILON)), axis=-1).mean()


def regularizer(kind, weight, output):
    total = np.sum(np.abs(output)) if kind == "l1" else np.sum(np.square(output))
    return weight * total / len(output)


LOSSES = {
    "bernoulli": (sigmoid, binary_crossentropy),
    "gaussian": (lambda a: a, mean_squared_error),
    "multinomial": (
        lambda a: np.exp(a) / np.exp(a).sum(axis=-1, keepdims=True),
        categorical_crossentropy,
    ),
}


def keras_loss(weights, x, loss, kind, weight):
    """Dense(H, relu, activity_regularizer=kind(weight)) -> Dense(N, ...), one training step's loss.

    Dense kernels are (in, out) in Keras, the transpose of torch's.
    """
    w, b, v, c = weights
    code = np.maximum(x @ w.T + b, 0.0)
    activation, cost = LOSSES[loss]
    total = cost(x, activation(code @ v.T + c))
    return total + (regularizer(kind, weight, code) if kind else 0.0)


def setup(loss, kind, weight):
    torch.manual_seed(0)
    sparsity = f"{kind}:{weight}" if kind else None
    model = SparseAutoencoder(N, H, sparsity=sparsity, loss=loss, reduction="keras").double()
    with torch.no_grad():
        for bias in (model.encoder.bias, model.output.bias):
            bias.normal_()
    x = (torch.rand(B, N, dtype=torch.float64) < 0.3).double()
    if loss != "bernoulli":
        x = x * torch.randint(1, 4, (B, N))
    x[2] = 0
    return model, x


@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize(("kind", "weight"), [(None, 0.0), ("l1", 0.03), ("l2", 0.02)])
def test_loss_and_gradient_are_those_of_keras(loss, kind, weight):
    model, x = setup(loss, kind, weight)
    out = model(CSRBatch.from_dense(x))
    parameters = [
        model.encoder.weight,
        model.encoder.bias,
        model.output.weight,
        model.output.bias,
    ]
    weights = [p.detach().numpy().copy(order="C") for p in parameters]
    wanted = keras_loss(weights, x.numpy(), loss, kind, weight)
    np.testing.assert_allclose(out.loss.item(), wanted, rtol=1e-12)
    assert out.loss == out.nll + out.penalty
    grads = torch.autograd.grad(out.loss, parameters)
    step = 1e-6
    for weight_array, grad in zip(weights, grads, strict=True):
        assert grad.abs().max() > 1e-4
        for index in np.ndindex(weight_array.shape):
            kept = weight_array[index]
            values = []
            for moved in (kept + step, kept - step):
                weight_array[index] = moved
                values.append(keras_loss(weights, x.numpy(), loss, kind, weight))
            weight_array[index] = kept
            numeric = (values[0] - values[1]) / (2 * step)
            assert abs(numeric - grad[index].item()) < 1e-7


@pytest.mark.parametrize("loss", list(LOSSES))
def test_factor_between_the_two_reductions(loss):
    keras, x = setup(loss, "l1", 0.03)
    torch.manual_seed(0)
    elbo = SparseAutoencoder(N, H, sparsity="l1:0.03", loss=loss).double()
    elbo.load_state_dict(keras.state_dict())
    nats, mean = elbo(x), keras(x)
    torch.testing.assert_close(nats.penalty, mean.penalty)
    expected = {
        "bernoulli": N * mean.nll,
        "gaussian": N * (0.5 * mean.nll + 0.5 * np.log(2 * np.pi)),
        "multinomial": mean.nll,
    }
    torch.testing.assert_close(nats.nll, expected[loss])


def test_penalty_does_not_depend_on_the_batch_size():
    model, x = setup("bernoulli", "l1", 0.5)
    assert torch.allclose(model(x).loss, model(torch.cat([x, x])).loss, rtol=1e-12)


def test_where_keras_clips_the_logits_here_go_on():
    # Beyond |logit| = log((1 - 1e-7) / 1e-7) = 16.1 Keras' loss is flat; the logits' loss is not.
    model, x = setup("bernoulli", None, 0.0)
    border = np.log((1 - EPSILON) / EPSILON)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for logit, same in ((border - 0.5, True), (border + 4.0, False)):
        model.output.bias.data.fill_(logit)
        clipped = binary_crossentropy(x.numpy(), sigmoid(np.full((B, N), logit)))
        out = model(x)
        assert np.isclose(out.loss.item(), clipped, rtol=1e-9) == same
        (grad,) = torch.autograd.grad(out.loss, model.output.bias)
        assert grad.abs().sum() > 0
