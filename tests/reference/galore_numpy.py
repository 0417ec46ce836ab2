"""GaLore of one matrix in NumPy, float64, as slow and plain as it gets."""

import numpy as np


def orth(z):
    q, r = np.linalg.qr(z)
    return q * np.where(np.diag(r) < 0, -1, 1)


def new_basis(refresh, gradient, basis):
    if refresh == "power":
        return orth(gradient @ (gradient.T @ basis))
    left = np.linalg.svd(gradient)[0][:, : basis.shape[1]]
    largest = np.abs(left).argmax(0)
    return left * np.sign(left[largest, range(left.shape[1])])


def carry(c, first, second, moments):
    """Both moments (r, n) in the coordinates c takes them to."""
    if moments == "keep":
        return first, second
    if moments == "reset":
        return first * 0, second * 0
    rotated = np.empty_like(second)
    for i in range(len(c)):
        rotated[i] = sum(c[i, k] ** 2 * second[k] for k in range(len(c)))
        if moments == "fill":
            rotated[i] += (1 - sum(c[i] ** 2)) * second.mean(0)
    return c @ first, rotated


def galore(weight, gradients, basis, *, lr, decay, gap, scale, refresh, moments):
    """Weights (m, n) after each gradient (m, n); `basis` (m, r) is the one at the start.

    Inside is optax.adamw: b1 0.9, b2 0.999, eps 1e-8 after the bias correction.
    """
    weight, basis = weight.astype(np.float64), basis.astype(np.float64)
    first = second = np.zeros((basis.shape[1], weight.shape[1]))
    for t, gradient in enumerate(gradients):
        gradient = gradient.astype(np.float64)
        if t % gap == 0:
            old, basis = basis, new_basis(refresh, gradient, basis)
            first, second = carry(basis.T @ old, first, second, moments)
        low = basis.T @ gradient
        first = 0.9 * first + 0.1 * low
        second = 0.999 * second + 0.001 * low**2
        m, v = first / (1 - 0.9 ** (t + 1)), second / (1 - 0.999 ** (t + 1))
        step = scale * basis @ (m / (np.sqrt(v) + 1e-8))
        weight = weight - lr * step - lr * decay * weight
        yield weight
