"""KD3A on AmazonReview: the sentiment of reviews of books, dvd, electronics and kitchen, each the unlabelled target in turn.

Paper: arXiv 2011.09757; data: Blitzer et al. 2007 in the form of Chen et al. 2012, 5,000 counts of words and pairs of words,
2,000 training reviews a domain. Setting as in the paper (MLP 5000-1000-500-100, batch 50, lr 0.05 -> 0.001), but 20 epochs for
its 100, and log(1 + count).
Command: python launch.py --config=configs/kd3a_amazon_reviews.py:kd3a-books (methods: configs/kd3a.py)
Published: not verified (METHODS.md 6.8). Measured (seed 0, 2 to 4 minutes a run on one core), test accuracy of books, dvd,
electronics, kitchen: kd3a 0.791, 0.802, 0.844, 0.867; one other domain's model, mean 0.726, 0.756, 0.774, 0.798, best 0.739,
0.796, 0.850, 0.855; with labels 0.813, 0.817, 0.860, 0.869. Pooled and a reading: README. Other seeds: not yet run.
"""

from ml_collections import ConfigDict

from configs import base, kd3a

DOMAINS = ("books", "dvd", "electronics", "kitchen")

VARIANTS = kd3a.words(DOMAINS)


def get_config(variant: str = "kd3a-books") -> ConfigDict:
    config = base.get_config()
    config.data.source = "amazon_reviews"
    config.data.amazon_reviews.path = "../shared/data/amazon_reviews/amazon_reviews_bow5000.npz"
    config.data.amazon_reviews.scale = "log"
    config.model.name = "mlp"
    config.model.mlp.hidden = (1000, 500, 100)
    config.rounds = 20
    config.client.batch_size = 50
    config.client.lr = 0.05
    config.client.schedule.final = 0.001
    config.eval.every = 5
    config.checkpoint.every = 5
    return kd3a.variant(config, variant, DOMAINS, {})
