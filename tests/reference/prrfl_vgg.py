"""The slim VGG16 of METHODS.md 2.6 for `prrfl`'s loop, in PyTorch and float64, with PyTorch's own gradients."""

import numpy as np
import torch
from torch.nn import functional

from .prrfl import TINY, mitigation

BLOCKS = (2, 2, 3, 3, 3)


class Slim:
    """Models are state dicts of NumPy arrays in PyTorch's names and layouts, images [B, H, W, 3]."""

    classifier = "fc2"

    def __init__(self, classes, width):
        self.classes, self.width = classes, width  # of the features

    def norms(self, model):
        return [name for name in model if ".bn." in name]

    def parameters(self, model):
        return {name: value for name, value in model.items() if "running" not in name}

    def to_torch(self, model):
        return model

    def from_torch(self, model):
        return model

    def forward(self, model, x, train, statistics):
        """Features and logits; in training the new running statistics go into `statistics`."""

        def norm(z, name):
            mean, var = (model[f"{name}.running_{what}"].clone() for what in ("mean", "var"))
            z = functional.batch_norm(z, mean, var, model[f"{name}.weight"], model[f"{name}.bias"], train, 0.1, 1e-5)
            statistics[f"{name}.running_mean"], statistics[f"{name}.running_var"] = mean.numpy(), var.numpy()
            return functional.relu(z)

        z = torch.tensor(x).permute(0, 3, 1, 2)
        for b, layers in enumerate(BLOCKS):
            for i in range(layers):
                name = f"layer{b + 1}.{i}"
                z = norm(functional.conv2d(z, model[f"{name}.conv.weight"], padding=1), f"{name}.bn")
            z = functional.max_pool2d(z, 2)
        features = norm(functional.linear(z.mean((2, 3)), model["fc1.linear.weight"]), "fc1.bn")
        return features, functional.linear(features, model["fc2.linear.weight"])

    def logits(self, model, x):
        with torch.no_grad():
            return self.forward({k: torch.tensor(v) for k, v in model.items()}, x, False, {})[1].numpy()

    def gradients(self, P, D, x, y, stage, gamma, rules):
        y, results, gamma = torch.tensor(y, dtype=torch.int64), [], torch.tensor(gamma)
        for model in (P, D):
            leaves = {name: torch.tensor(value) for name, value in model.items()}
            for name in self.parameters(model):
                leaves[name].requires_grad_()
            statistics = {}
            results.append((leaves, *self.forward(leaves, x, True, statistics), statistics))
        (leaves_P, features, z_P, new_P), (leaves_D, _, z_D, new_D) = results

        def supervised(z):
            if not rules.cpa:
                return functional.cross_entropy(z, y)
            s = torch.tensor(mitigation(rules.counts, rules.beta))[y]
            e = torch.exp(z - z.max(1, keepdim=True).values)
            sigma = e.gather(1, y[:, None])[:, 0] / ((s * e).sum(1) + TINY)
            return (-gamma[y] * torch.log(sigma + TINY)).mean()

        def kl(teacher, student):
            p = functional.softmax(teacher.detach(), 1)
            return functional.kl_div(functional.log_softmax(student, 1), p, reduction="batchmean")

        loss_P, loss_D = supervised(z_P), supervised(z_D)
        if stage >= 2:
            loss_P = loss_P + kl(z_D, z_P)
        if stage <= 2:
            loss_D = loss_D + kl(z_P, z_D)
        (loss_P + loss_D).backward()
        gradient_P, gradient_D = (
            {name: leaves[name].grad.numpy() for name in self.parameters(leaves)} for leaves in (leaves_P, leaves_D)
        )
        return features.detach().numpy(), (gradient_P, new_P), (gradient_D, new_D)


def load(model):
    """Float64 copies, without the counters of batches."""
    return {name: np.asarray(v, np.float64) for name, v in model.items() if not name.endswith("num_batches_tracked")}
