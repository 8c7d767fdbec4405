"""Device mesh, sharding rules, and coordination of the processes of a run."""
