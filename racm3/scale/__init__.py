"""Scale: what takes too long on one machine, on many of them (Ray Data), with the same result; docs/scale.md."""
