"""The oracles: each method as a plain NumPy loop in float64, written from METHODS.md and the papers, importing no JAX.

A model is a dict from names to arrays: the parameters of `network.PARAMETERS`, and the batch-norm running statistics where
the network has batch norm. All oracles take

    model     the initial model
    data      for each of the N clients its rows (x [n, d], y [n])
    rounds    for each round its participants: (client, whether its upload arrives)
    batches   batches(t, k) -> for each epoch the list of its batches, each an array of row numbers of client k
    solver    solver(t) -> the client's optimiser in round t, made anew for each client (`sgd.SGD`)

and yield, after each round, a `Round`: what server and clients hold and the model that each client would use now.

FedLGT's network is too much for gradients by hand: `fedlgt.py` is a float64 PyTorch loop with a signature of its own.
"""
