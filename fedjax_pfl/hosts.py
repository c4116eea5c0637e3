"""Several hosts: each runs the same program on the same data, and has its part of every cohort's clients.

Every host knows the whole state, draws the same cohorts and takes the same decisions; the first one writes. What a host has
by itself (examples, keys) becomes part of arrays over all hosts in `core.everywhere` and `cohort.assemble`, and `here`
takes such an array back.
"""

import re
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_pfl.errors import UserError


def join(address: str | None, number: int | None, this: int | None) -> None:
    """Wait for the other hosts. Before anything else that uses JAX.

    Args:
        address: HOST:PORT of the first host, or 'auto': as the cluster's environment says.
        number: of processes.
        this: this one's number.

    Raises:
        UserError: impossible values, or the others don't come.
    """
    if address == "auto":
        if number is not None or this is not None:
            raise UserError(
                "--coordinator_address: found 'auto', expected no --num_processes and no --process_id with it"
            )
        given: dict[str, Any] = {}
    else:
        if address is None or not re.fullmatch(r".+:\d+", address):
            found = "missing" if address is None else f"found '{address}'"
            raise UserError(f"--coordinator_address: {found}, expected HOST:PORT or 'auto'")
        if number is None or this is None or this >= number:
            raise UserError(
                f"--process_id: found {this} with --num_processes={number}, expected 0 to num_processes - 1"
            )
        given = {"coordinator_address": address, "num_processes": number, "process_id": this}
    try:
        jax.distributed.initialize(**given)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--coordinator_address: the hosts did not find each other ({reason})") from None


def several() -> bool:
    """Whether there are other hosts."""
    return jax.process_count() > 1


def first() -> bool:
    """Whether this is the host that writes."""
    return jax.process_index() == 0


def spread(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays over all hosts: of a replicated sharding each host gives the whole, of one of clients its part of them."""

    def one(leaf: Any) -> Any:
        if not getattr(leaf, "is_fully_addressable", True):
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(one(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    return jax.tree.map(one, tree)


def here(tree: Any) -> Any:
    """Arrays that all hosts have whole, as this one's own, on each of its devices."""

    def one(leaf: Any) -> Any:
        if getattr(leaf, "is_fully_addressable", True):
            return leaf
        devices = Mesh(np.array(jax.local_devices()), ("devices",))
        copies = {shard.device: shard.data for shard in leaf.addressable_shards}
        return jax.make_array_from_single_device_arrays(
            leaf.shape, NamedSharding(devices, PartitionSpec()), [copies[device] for device in devices.devices]
        )

    return jax.tree.map(one, tree)


def any_of(signal: int | None) -> int | None:
    """A signal that came to any of the hosts."""
    if not several():
        return signal
    return int(np.max(multihost_utils.process_allgather(np.int32(signal or 0)))) or None


def check_alike(what: str, text: str) -> None:
    """Raises UserError where this text isn't the same on all hosts."""
    if several():
        each = multihost_utils.process_allgather(np.uint32(zlib.crc32(text.encode())))
        if len(set(map(int, np.ravel(each)))) > 1:
            raise UserError(f"--coordinator_address: the hosts have different {what}, expected the same")
