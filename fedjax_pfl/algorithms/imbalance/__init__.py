"""Methods for classes of unequal size; losses for them are in `fedjax_pfl.imbalance`, samplers in `fedjax_pfl.local`."""
