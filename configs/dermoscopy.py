"""What the dermoscopy configs share: PRR-FL's three hospitals, VGG16-slim, and a setting that two CPU cores manage."""

from ml_collections import ConfigDict

from configs import base


def get_config(method: str = "fedavg") -> ConfigDict:
    """PRR-FL's clients A, B, C on 32 x 32 pixels, 2,400 of the 8,490 images, 12 rounds of 1 epoch.

    Paper (PRR-FL, arXiv 2110.00394): 128 x 128, all images, 50 rounds of 5 epochs, batch 16, SGD without momentum, lr
    0.01 halved every 5 rounds, weight decay 1e-6, all clients in every round, uniform weights. Here lr 0.02 with momentum
    0.9, falling along a cosine, makes up for some of the missing epochs. On a GPU, the paper's:
    --config.data.dermoscopy.size=128 --config.split.max_examples=0 --config.rounds=50 --config.client.epochs=5
    --config.client.lr=0.01 --config.client.sgd.momentum=0 --config.client.schedule.name=step
    --config.client.schedule.every=5 (its client D is not among the data).
    """
    config = base.get_config()
    config.name = config.method = method
    config.rounds = 12
    config.data.source = "dermoscopy"
    config.data.dermoscopy.path = "../shared/data/dermoscopy_prrfl/dermoscopy_abc_128.zip"
    config.data.dermoscopy.size = 32
    config.split.max_examples = 2400
    config.augment.flip_horizontal = 0.5
    config.augment.flip_vertical = 0.5
    config.augment.brightness = 0.2
    config.augment.brightness_p = 0.75
    config.augment.mean = (0.5,)
    config.augment.std = (0.5,)
    config.model.name = "vgg16_slim"
    config.client.epochs = 1
    config.client.batch_size = 16
    config.client.lr = 0.02
    config.client.sgd.momentum = 0.9
    config.client.weight_decay = 1e-6
    config.client.schedule.name = "cosine"
    config.eval.every = 3
    config.checkpoint.every = 3
    return config
