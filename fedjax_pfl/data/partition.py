"""Who holds which rows: natural clients and the artificial partitions of the literature.

A partition is a function `(pool, seed, *, options) -> Parts`. Those of NIID-Bench (Li et al., ICDE 2022, arXiv
2102.02079, section IV) draw in the order of their published code, from NumPy's legacy generator and, for the choice of
classes, from Python's, both started with `seed`: their lists of rows equal that code's with `init_seed = seed`.

Where that code would hang, divide by zero or drop rows silently, there is a bound or an error instead:
  - a draw that never gives every client enough rows stops after `retries` attempts;
  - #C = k works for any number of classes (theirs drops every class above the tenth at k = 10, and turns k into 1 for
    two classes), and names the classes that no client drew.
"""

import random
from collections.abc import Callable

import numpy as np

from fedjax_pfl.data.types import Parts, Pool
from fedjax_pfl.errors import UserError

Rows = list[np.ndarray]


def natural(pool: Pool, seed: int, *, min_examples: int = 1) -> Parts:
    """One client per hospital, site or writer of the source; those with fewer than `min_examples` rows are left out."""
    del seed
    client, names = _natural_clients(pool, "natural")
    rows = _rows_of(client, len(names))
    kept = [c for c in range(len(names)) if len(rows[c]) >= max(min_examples, 1)]
    if not kept:
        most = max((len(r) for r in rows), default=0)
        raise UserError(
            f"config.split.natural.min_examples: {min_examples} leaves no client (the largest has {most} rows)"
        )
    return _parts([rows[c] for c in kept], [names[c] for c in kept])


def homogeneous(pool: Pool, seed: int, *, clients: int = 10) -> Parts:
    """IID: a random permutation cut into nearly equal parts (NIID-Bench `homo`)."""
    _enough(pool, clients, "homogeneous")
    return _parts(np.array_split(np.random.RandomState(seed).permutation(len(pool.y)), clients))


def label_quantity(pool: Pool, seed: int, *, clients: int = 10, k: int = 2, unheld: str = "error") -> Parts:
    """#C = k: each client holds k classes; a class is cut evenly among its holders (NIID-Bench `noniid-#label<k>`).

    Client i always holds class i mod K, the other k - 1 are drawn. With fewer clients than classes some class may be
    drawn by nobody: `unheld` = 'error', or 'drop' to do without its rows.
    """
    labels = _single_labels(pool, "label_quantity")
    _enough(pool, clients, "label_quantity")
    if not 1 <= k <= pool.classes:
        raise UserError(f"config.split.label_quantity.k: {k} classes for each client, but the data have {pool.classes}")
    if unheld not in ("error", "drop"):
        raise UserError(f"config.split.label_quantity.unheld: '{unheld}', expected 'error' or 'drop'")
    draw = random.Random(seed)
    held: list[list[int]] = []
    for i in range(clients):
        classes = [i % pool.classes]
        while len(classes) < k:
            c = draw.randint(0, pool.classes - 1)
            if c not in classes:
                classes.append(c)
        held.append(classes)

    holders = [[i for i in range(clients) if c in held[i]] for c in range(pool.classes)]
    lost = [c for c in range(pool.classes) if not holders[c] and np.any(labels == c)]
    if lost and unheld == "error":
        raise UserError(
            f"config.split.label_quantity: no client of {clients} drew the classes {', '.join(map(str, lost))}; "
            "take more clients, a larger k, another seed, or unheld='drop'"
        )
    rng = np.random.RandomState(seed)
    rows: list[Rows] = [[] for _ in range(clients)]
    for c in range(pool.classes):
        of_class = np.flatnonzero(labels == c)
        rng.shuffle(of_class)
        if holders[c]:
            for i, part in zip(holders[c], np.array_split(of_class, len(holders[c])), strict=True):
                rows[i].append(part)
    return _parts([np.concatenate(r) for r in rows])


def dirichlet(
    pool: Pool, seed: int, *, clients: int = 10, beta: float = 0.5, min_size: int = 10, retries: int = 1000
) -> Parts:
    """Each class is handed out in shares ~ Dirichlet(beta) (NIID-Bench `noniid-labeldir`).

    A client that has its fair share N / n gets nothing of the classes that follow; all is drawn again until the
    smallest client has `min_size` rows. A row of several labels counts as its rarest one, those without any label as a
    class of their own.
    """
    labels, classes = (
        _rarest_labels(pool) if pool.task == "multi" else (_single_labels(pool, "dirichlet"), pool.classes)
    )
    _enough(pool, clients, "dirichlet", min_size)
    _positive(beta, "config.split.dirichlet.beta")
    rng = np.random.RandomState(seed)
    n = len(labels)
    for _ in range(retries):
        rows: list[list[int]] = [[] for _ in range(clients)]
        for c in range(classes):
            of_class = np.flatnonzero(labels == c)
            rng.shuffle(of_class)
            q = rng.dirichlet(np.repeat(beta, clients))
            q = q * np.array([len(r) < n / clients for r in rows])
            if not q.sum() > 0:  # every share left has underflowed (or is NaN): this attempt is lost
                break
            q = q / q.sum()
            cuts = (np.cumsum(q) * len(of_class)).astype(int)[:-1]
            for r, part in zip(rows, np.split(of_class, cuts), strict=True):
                r.extend(part.tolist())
        else:
            if min(map(len, rows)) >= max(min_size, 1):
                for r in rows:
                    rng.shuffle(r)
                return _parts([np.array(r, np.int64) for r in rows])
    raise UserError(_no_luck("dirichlet", clients, beta, min_size, retries))


def noise(pool: Pool, seed: int, *, clients: int = 10, level: float = 0.1) -> Parts:
    """As `homogeneous`, and client i adds noise of standard deviation level * i / (n - 1) to its inputs (9.4 there).

    The paper speaks of a variance; the number is used as a standard deviation, as its code does.
    """
    if clients < 2:
        raise UserError(f"config.split.noise.clients: {clients}, expected at least 2 (noise grows from first to last)")
    if not level >= 0:
        raise UserError(f"config.split.noise.level: {level}, expected a standard deviation >= 0")
    parts = homogeneous(pool, seed, clients=clients)
    return parts._replace(noise=(level * np.arange(clients) / (clients - 1)).astype(np.float32))


def fcube(pool: Pool, seed: int, *, clients: int = 4) -> Parts:
    """Consecutive, nearly equal parts: of source `fcube`, four clients hold a pair of opposite octants each."""
    del seed
    _enough(pool, clients, "fcube")
    return _parts(np.array_split(np.arange(len(pool.y)), clients))


def real(pool: Pool, seed: int, *, clients: int = 10) -> Parts:
    """Natural clients (writers), permuted, joined into nearly equal groups (NIID-Bench `real`)."""
    writer, names = _natural_clients(pool, "real")
    if not 1 <= clients <= len(names):
        raise UserError(f"config.split.real.clients: {clients} groups out of {len(names)} natural clients")
    of_writer = _rows_of(writer, len(names))
    order = np.random.RandomState(seed).permutation(len(names))
    return _parts([np.concatenate([of_writer[w] for w in part]) for part in np.array_split(order, clients)])


def quantity(
    pool: Pool, seed: int, *, clients: int = 10, beta: float = 0.5, min_size: int = 10, retries: int = 1000
) -> Parts:
    """IID rows, sizes ~ Dirichlet(beta), drawn until each is at least `min_size` (NIID-Bench `iid-diff-quantity`)."""
    _enough(pool, clients, "quantity", min_size)
    _positive(beta, "config.split.quantity.beta")
    rng = np.random.RandomState(seed)
    order = rng.permutation(len(pool.y))
    for _ in range(retries):
        q = rng.dirichlet(np.repeat(beta, clients))
        q = q / q.sum()
        if np.min(q * len(order)) >= max(min_size, 1):
            return _parts(np.split(order, (np.cumsum(q) * len(order)).astype(int)[:-1]))
    raise UserError(_no_luck("quantity", clients, beta, min_size, retries))


def shards(pool: Pool, seed: int, *, clients: int = 10, shards: int = 2) -> Parts:
    """Rows sorted by label, cut into `shards` * clients shards, `shards` drawn for each client.

    McMahan et al. 2017 (arXiv 1602.05629, section 3) and Zhao et al. 2018 (arXiv 1806.00582, section 2), whose 1-class
    and 2-class non-IID data are `shards` = 1 and 2 with as many clients as classes.
    """
    labels = _single_labels(pool, "shards")
    _positive(shards, "config.split.shards.shards")
    _enough(pool, clients, "shards", shards)
    pieces = np.array_split(np.argsort(labels, kind="stable"), clients * shards)
    order = np.random.RandomState(seed).permutation(clients * shards).reshape(clients, shards)
    return _parts([np.concatenate([pieces[s] for s in mine]) for mine in order])


def hsu(pool: Pool, seed: int, *, clients: int = 10, alpha: float = 0.5) -> Parts:
    """Each client draws its own classes ~ Dirichlet(alpha * prior), sizes are equal (Hsu et al. 2019, 1909.06335).

    The prior is the frequency of each class. Client by client, rows are drawn without replacement by these shares,
    which are normalised again whenever a class runs out.
    """
    labels = _single_labels(pool, "hsu")
    _enough(pool, clients, "hsu")
    _positive(alpha, "config.split.hsu.alpha")
    rng = np.random.RandomState(seed)
    waiting = [rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    left = np.array([len(w) for w in waiting])
    prior = left / left.sum()
    sizes = [len(part) for part in np.array_split(np.arange(len(labels)), clients)]
    rows = []
    for size in sizes:
        q = np.nan_to_num(rng.dirichlet(alpha * prior))
        counts = np.zeros_like(left)
        while (missing := size - counts.sum()) > 0:
            # What is drawn beyond a class's last row is drawn again from the others, by the shares that remain.
            share = np.where(left > counts, q, 0.0)
            share = share if share.sum() > 0 else (left - counts).astype(float)
            counts += np.minimum(rng.multinomial(missing, share / share.sum()), left - counts)
        drawn = zip(waiting, left, counts, strict=True)
        rows.append(np.concatenate([w[len(w) - m : len(w) - m + c] for w, m, c in drawn]))
        left = left - counts
    return _parts(rows)


def label_cluster(pool: Pool, seed: int, *, clients: int = 10, groups: int = 3, skew: float = 0.8) -> Parts:
    """Partial label correlation: each client sees mostly one or two groups of labels that occur together.

    For methods such as FedLGT (Liu, Lin, Yang, Wang, AAAI 2024, arXiv 2312.07165), from any data of several labels: the
    labels are clustered into `groups` by how often they occur together (`label_groups`), and a row belongs to the group
    of most of its labels (of equally many, the one with the rarer labels; without labels, a random one). The rows,
    sorted by group, are cut into nearly equal parts, one for each client; then a share 1 - `skew` of all rows changes
    places at random.
    """
    if pool.task != "multi":
        raise UserError(
            f"config.split.partition: 'label_cluster' needs several labels for each row, but the task is '{pool.task}'; "
            "choose 'homogeneous' or, for one label, 'dirichlet'"
        )
    _enough(pool, clients, "label_cluster")
    if not 1 <= groups <= pool.classes:
        raise UserError(
            f"config.split.label_cluster.groups: {groups}, expected 1 to {pool.classes}, the number of labels"
        )
    if not 0 <= skew <= 1:
        raise UserError(f"config.split.label_cluster.skew: {skew}, expected a share of 0 to 1")
    rng = np.random.RandomState(seed)
    n, counts = len(pool.y), pool.y.sum(0, dtype=np.int64)
    member = np.eye(groups)[label_groups(pool.y, groups)]  # [L, groups]
    rarity = 1 / (1 + counts) / (1 + pool.classes)  # all labels of a row together weigh less than one more label
    votes = pool.y @ ((1 + rarity)[:, None] * member)
    group = np.where(pool.y.any(1), votes.argmax(1), rng.randint(groups, size=n))
    shuffled = rng.permutation(n)
    order = shuffled[np.argsort(rng.permutation(groups)[group[shuffled]], kind="stable")]
    moved = rng.permutation(n)[: round((1 - skew) * n)]
    order[moved] = order[rng.permutation(moved)]
    return _parts(np.array_split(order, clients))


def label_groups(y: np.ndarray, groups: int) -> np.ndarray:
    """The group 0 ... groups - 1 of each of the L labels, [L]: those that occur together in y [n, L] come together.

    Ward's clustering of the labels' cosine similarities: each label is described by how much it occurs with each other.
    """
    from scipy.cluster.hierarchy import cut_tree, ward
    from scipy.spatial.distance import pdist

    if y.shape[1] == 1:
        return np.zeros(1, np.int64)
    together = y.T.astype(np.float64) @ y
    size = np.sqrt(np.maximum(np.diag(together), 1))
    return cut_tree(ward(pdist(together / np.outer(size, size))), groups)[:, 0]


PARTITIONS: dict[str, Callable[..., Parts]] = {
    "natural": natural,
    "homogeneous": homogeneous,
    "label_quantity": label_quantity,
    "dirichlet": dirichlet,
    "noise": noise,
    "fcube": fcube,
    "real": real,
    "quantity": quantity,
    "shards": shards,
    "hsu": hsu,
    "label_cluster": label_cluster,
}


def _parts(rows: Rows, names: list[str] | None = None) -> Parts:
    width = len(str(len(rows) - 1))
    names = names or [f"client_{i:0{width}d}" for i in range(len(rows))]
    return Parts(tuple(np.asarray(r, np.int64) for r in rows), tuple(names), np.zeros(len(rows), np.float32))


def _natural_clients(pool: Pool, partition: str) -> tuple[np.ndarray, tuple[str, ...]]:
    if pool.client is None:
        raise UserError(
            f"config.split.partition: '{partition}' needs natural clients, but this source has none; "
            "choose an artificial one, e.g. 'dirichlet', or give a client column"
        )
    return pool.client, pool.client_names


def _rows_of(client: np.ndarray, clients: int) -> Rows:
    """The rows of each natural client, ascending; one sort for all, as there may be tens of thousands."""
    return np.split(np.argsort(client, kind="stable"), np.cumsum(np.bincount(client, minlength=clients))[:-1])


def _single_labels(pool: Pool, partition: str) -> np.ndarray:
    if pool.task != "single":
        others = "'dirichlet', 'label_cluster', " if pool.task == "multi" else ""
        raise UserError(
            f"config.split.partition: '{partition}' needs one label for each row, but the task is '{pool.task}'; "
            f"choose {others}'homogeneous', 'quantity', 'noise' or 'natural'"
        )
    return pool.y


def _rarest_labels(pool: Pool) -> tuple[np.ndarray, int]:
    """Of each row of several labels the one that the fewest rows have, L where it has none; and L + 1."""
    rarest_first = np.argsort(pool.y.sum(0, dtype=np.int64), kind="stable")
    label = rarest_first[pool.y[:, rarest_first].argmax(1)]
    return np.where(pool.y.any(1), label, pool.classes), pool.classes + 1


def _enough(pool: Pool, clients: int, partition: str, min_size: int = 1) -> None:
    field = f"config.split.{partition}.clients"
    if clients < 1:
        raise UserError(f"{field}: {clients}, expected at least 1")
    if clients * max(min_size, 1) > len(pool.y):
        rows = "" if min_size <= 1 else f" of at least {min_size} rows"
        raise UserError(f"{field}: {clients} clients{rows}, but there are only {len(pool.y)} examples")


def _positive(value: float, field: str) -> None:
    if not value > 0 or not np.isfinite(value):
        raise UserError(f"{field}: {value}, expected a number > 0")


def _no_luck(partition: str, clients: int, beta: float, min_size: int, retries: int) -> str:
    return (
        f"config.split.{partition}: none of {retries} draws gave all {clients} clients {min_size} rows "
        f"at beta = {beta}; take a larger beta, fewer clients, a smaller min_size or more retries"
    )
