"""PyTorch's SGD, with clipping of the gradient's norm before it."""

import numpy as np


class SGD:
    """clip the norm of g; g <- g + weight_decay w; b <- momentum b + g; w <- w - lr b, or lr (g + momentum b) (nesterov)."""

    def __init__(self, lr, momentum=0.0, nesterov=False, weight_decay=0.0, clip=0.0):
        self.lr, self.momentum, self.nesterov = lr, momentum, nesterov
        self.weight_decay, self.clip = weight_decay, clip
        self.buffer = None

    def step(self, w, g):
        """The parameters `w`, a dict, after one step along the gradient `g`."""
        norm = np.sqrt(sum((g[name] ** 2).sum() for name in w))
        if self.clip and norm > self.clip:
            g = {name: self.clip / norm * g[name] for name in w}
        g = {name: g[name] + self.weight_decay * w[name] for name in w}
        if self.buffer is None:  # PyTorch's first step: b = g
            self.buffer = g
        else:
            self.buffer = {name: self.momentum * self.buffer[name] + g[name] for name in w}
        nesterov = {name: g[name] + self.momentum * self.buffer[name] for name in w}
        direction = nesterov if self.nesterov else self.buffer
        return {name: w[name] - self.lr * direction[name] for name in w}
